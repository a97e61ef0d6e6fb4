"""A history in any database for which SQLAlchemy has an asyncio dialect."""
