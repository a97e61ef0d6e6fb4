"""Erasing, pruning and resetting a SQLite file."""
