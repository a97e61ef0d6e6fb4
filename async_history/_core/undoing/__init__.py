"""Taking memories back: restore, rollback and undo."""
