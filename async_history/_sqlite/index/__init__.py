"""The tables that find records in a SQLite file, and whether they can be trusted."""
