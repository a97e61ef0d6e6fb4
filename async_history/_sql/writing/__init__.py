"""A batch in one transaction, through SQLAlchemy: its statements, look-ups and owners."""
