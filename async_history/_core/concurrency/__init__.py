"""Parts for asyncio and threads: waiting, deadlines, loops, and the life of a manager."""
