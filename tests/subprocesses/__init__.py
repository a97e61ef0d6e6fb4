"""Programs that the tests start: what is killed, fails, or works at the same time.

Each is run as `python -m tests.subprocesses.<name>`, by `processes.run` or `processes.started`.
"""
