"""The SELECTs of queries, followers, and states at a moment, in a SQLite file."""
