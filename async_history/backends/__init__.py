"""What keeps a history: `sqlite`, `postgres` and `null`, and the rooms those are made of.

A backend imports no other; each is imported only when it is opened.
"""
