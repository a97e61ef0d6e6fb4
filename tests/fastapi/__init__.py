"""Tests of the support for FastAPI."""
