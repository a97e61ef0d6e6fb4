"""mem0's vector store: its payloads, its changes, its lists."""
