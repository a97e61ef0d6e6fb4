"""The tables of a SQLite file (numbered .sql), and the adoption of mem0's older layouts."""
