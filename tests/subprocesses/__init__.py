"""Programs that the tests start: they are killed, fail, or work at the same time.

Each is run as `python -m tests.subprocesses.<name>`, by `processes.run` or `processes.started`.
"""
