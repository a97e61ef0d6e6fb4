"""What is public is shown under the public name of its module."""

from collections.abc import Iterable, Mapping
from typing import Any


def show_as(module: str, names: Iterable[str], namespace: Mapping[str, Any]) -> None:
    """Let the classes and functions that a module exports name it as theirs.

    So `repr`, tracebacks, pickles and documentation show `async_history.HistoryManager`, wherever
    it is written; and pickles are read again when it has moved.
    """
    for name in names:
        value = namespace[name]
        written_in = str(getattr(value, "__module__", ""))
        if written_in.startswith(("async_history._", f"{module}._")):
            value.__module__ = module
