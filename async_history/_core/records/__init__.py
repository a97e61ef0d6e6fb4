"""Records and what belongs to them: values, owners, causes and messages."""
