"""What every backend shares: the public manager, the queue and its writer, and every decision.

Knows no database and no mem0.
"""
