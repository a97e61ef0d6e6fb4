"""An example: a FastAPI service on async_history."""
