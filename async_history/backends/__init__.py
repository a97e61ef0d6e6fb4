"""What keeps a history: `sqlite`, `postgres` and `null`, and the rooms those are made of."""
