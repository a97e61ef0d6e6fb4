"""A batch in one transaction, on the connection's thread: its statements and look-ups."""
