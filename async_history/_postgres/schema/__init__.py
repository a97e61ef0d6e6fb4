"""The tables, the migrations that create them (numbered .sql), and names in statements."""

from async_history._postgres.schema.names import in_schema, quoted

__all__ = ["in_schema", "quoted"]
