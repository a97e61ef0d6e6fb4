"""Turns: who may change a memory, within a process and among processes."""
