"""Programs that the tests start: what is killed, fails, or works beside us in a process of its own.

Each is run as `python -m tests.subprocesses.<name>`, by `processes.run` or `processes.started`.
"""
