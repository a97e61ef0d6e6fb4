"""Erasing and pruning, and what the server does after it: VACUUM and ANALYZE."""
