"""Forgetting an owner."""
