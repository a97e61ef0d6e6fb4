"""Erasing, pruning and resetting."""
