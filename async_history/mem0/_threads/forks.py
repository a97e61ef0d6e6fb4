"""Objects that are reset in a forked child, where the parent's threads and loops do not run."""

import os
import threading
import weakref
from typing import Any, Final, Protocol


class Forgetful(Protocol):
    """An object that can be reset in a forked child."""

    def forget(self) -> None:
        """Return to the state before first use, without touching what the parent has open."""


_forgetful: "weakref.WeakSet[Any]" = weakref.WeakSet()
_inherited: Final[list[object]] = []


def forget_in_child(thing: Forgetful) -> None:
    """Call `thing.forget` in every child that is forked while the object exists."""
    _forgetful.add(thing)


class LockFreeInChild:
    """A lock that is free in a forked child, even if a thread of the parent held it.

    Attributes:
        lock: the lock, for `with`.
    """

    def __init__(self) -> None:
        self.forget()
        forget_in_child(self)

    def forget(self) -> None:
        """Replace the lock."""
        self.lock = threading.Lock()


def keep_inherited(thing: object) -> None:
    """Keep a reference, in the child, to what the parent had open: freeing it would close it."""
    _inherited.append(thing)


def _forget() -> None:
    for thing in list(_forgetful):
        thing.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
