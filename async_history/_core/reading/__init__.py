"""Queries, pages, followers, and states at a moment."""
