"""A batch in one transaction: its statements, look-ups and owners."""
