"""Erasing, pruning and resetting, and what the server does after it: VACUUM and ANALYZE."""
