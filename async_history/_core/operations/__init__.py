"""The log of operations on a store."""
