"""The tables of a SQLite file, and the adoption of every older layout of mem0's."""
