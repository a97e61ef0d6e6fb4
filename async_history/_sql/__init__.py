"""A history in any database that SQLAlchemy speaks to, through one of its asyncio dialects."""
