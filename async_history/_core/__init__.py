"""Code shared by all backends: the public manager, the queue, its writer, and every decision.

It does not depend on a database or on mem0.
"""
