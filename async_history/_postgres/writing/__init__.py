"""A batch in one transaction, in PostgreSQL: its statements, look-ups and owners."""
