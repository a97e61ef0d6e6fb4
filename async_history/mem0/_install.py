# mypy: disable-error-code=import-untyped
"""Puts our classes in place of mem0's, for programs that build mem0's themselves."""

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
"""mem0's classes and ours. Ours derive from mem0's and hold them, so they stay what they are."""


def install() -> None:
    """Put ours in place of mem0's `Memory`, `AsyncMemory` and `SQLiteManager`, in all of mem0.

    What builds mem0's classes afterwards builds ours, and `history_db_path` takes any URL that
    `open_history` takes. Call it first: in a module that imported a class before
    (`from mem0 import Memory`), that name stays mem0's, which is logged. An object of such a class
    records here all the same, through a `BlockingHistoryManager`: without what our classes add.

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
    """Put mem0's classes back. Objects that were built meanwhile stay ours."""
    with _lock:
        for plain, ours in _PAIRS:
            _replace(ours, plain)


def _replace(old: object, new: object) -> None:
    for module, names in _modules():
        if _is_of("mem0", module):
            for name in _held(names, old):
                names[name] = new


def _early() -> Iterator[str]:
    """Yield where a class of mem0 is held outside of mem0."""
    for module, names in _modules():
        if not _is_of("mem0", module) and not _is_of("async_history", module):
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
    """Return those names that stand for an object."""
    return [name for name, held in list(names.items()) if held is value]
