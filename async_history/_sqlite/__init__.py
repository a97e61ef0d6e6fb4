"""The SQLite backend: its manager, its parts (writer, reader, follower, eraser), and its schema."""
