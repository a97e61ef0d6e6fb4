"""The check of a history."""
