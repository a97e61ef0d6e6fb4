# mypy: disable-error-code=import-untyped
"""Replacement of mem0's classes with this library's, for programs that build mem0's themselves."""

import logging
import sys
import threading
from collections.abc import Iterator
from typing import Any, Final

from mem0.memory import main as mem0_main
from mem0.memory.storage import SQLiteManager

from async_history.blocking import BlockingHistoryManager
from async_history.mem0._async_memory import AsyncMemory
from async_history.mem0._memory import Memory

_log = logging.getLogger("async_history")
_lock: Final = threading.Lock()

_PAIRS: Final[tuple[tuple[Any, Any], ...]] = (
    (mem0_main.Memory, Memory),
    (mem0_main.AsyncMemory, AsyncMemory),
    (SQLiteManager, BlockingHistoryManager),
)
"""mem0's classes and their replacements, which derive from them."""


def install() -> None:
    """Replace mem0's `Memory`, `AsyncMemory` and `SQLiteManager` in all modules of mem0.

    Code that builds mem0's classes afterwards builds this library's, and `history_db_path` takes
    any URL that `open_history` takes. Call it first: in a module that imported a class before
    (`from mem0 import Memory`), the name stays mem0's, and a warning is logged. An object of such a
    class still records in this history, through a `BlockingHistoryManager`, but without the other
    features.

    Safe to call again, and from any thread.
    """
    with _lock:
        was_installed = mem0_main.Memory is Memory
        for plain, ours in _PAIRS:
            _replace(plain, ours)
        early = [] if was_installed else sorted(_early())
    if early:
        _log.warning(
            "%s imported classes of mem0 before install(): there they stay mem0's own. Call "
            "install() before",
            ", ".join(early),
        )


def uninstall() -> None:
    """Restore mem0's classes. Objects built in between keep this library's classes."""
    with _lock:
        for plain, ours in _PAIRS:
            _replace(ours, plain)


def _replace(old: object, new: object) -> None:
    for module, names in _modules():
        if _is_of("mem0", module):
            for name in _held(names, old):
                names[name] = new


def _early() -> Iterator[str]:
    """Yield the places outside mem0 that hold a class of mem0, by one name of their module."""
    seen: set[int] = set()
    for module, names in _modules():
        if _is_of("mem0", module) or _is_of("async_history", module) or id(names) in seen:
            continue
        seen.add(id(names))
        for plain, _ in _PAIRS:
            for name in _held(names, plain):
                yield f"{module}.{name}"


def _modules() -> list[tuple[str, dict[str, object]]]:
    """Return the names that each imported module has. Programs put other objects there too."""
    modules = list(sys.modules.items())
    return [(name, vars(module)) for name, module in modules if hasattr(module, "__dict__")]


def _is_of(package: str, module: str) -> bool:
    return module.partition(".")[0] == package


def _held(names: dict[str, object], value: object) -> list[str]:
    """Return the names that refer to an object."""
    return [name for name, held in list(names.items()) if held is value]
