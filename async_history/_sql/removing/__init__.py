"""Erasing and pruning."""
