"""Histories copied from one store into another, as JSON lines, and from other projects' tables."""
