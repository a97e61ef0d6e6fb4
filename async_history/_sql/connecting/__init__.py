"""From a URL to connections, and what drivers do without SQLAlchemy."""
