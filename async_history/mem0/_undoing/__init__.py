"""Restoring memories, and taking many back."""
