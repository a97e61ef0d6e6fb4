"""The tests of what FastAPI applications get."""
