"""Locks on memories between processes."""
