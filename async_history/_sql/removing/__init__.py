"""Erasing, pruning and resetting through SQLAlchemy."""
