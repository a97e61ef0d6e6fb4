"""Public names are shown under their public module."""

from collections.abc import Iterable, Mapping
from typing import Any


def show_as(module: str, names: Iterable[str], namespace: Mapping[str, Any]) -> None:
    """Set a module as the `__module__` of the classes and functions that it exports.

    So `repr`, tracebacks, pickles and documentation show `async_history.HistoryManager`, wherever
    it is defined. Pickles still load after it has moved.
    """
    for name in names:
        value = namespace[name]
        written_in = str(getattr(value, "__module__", ""))
        if written_in.startswith(("async_history._", f"{module}._")):
            value.__module__ = module
