"""Threads and calls between them: workers, other loops, forks."""
