"""Comparing the vector store with the history, and repairing one from the other."""
