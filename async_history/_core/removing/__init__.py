"""Erasing and pruning: which texts and records go, in which steps."""
