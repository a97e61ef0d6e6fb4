"""What a forked child forgets: its parent's threads and loops do not run there."""

import os
import weakref
from typing import Any, Final, Protocol


class Forgetful(Protocol):
    """Something that begins again in a forked child."""

    def forget(self) -> None:
        """Begin again, without touching what the parent has open."""


_forgetful: "weakref.WeakSet[Any]" = weakref.WeakSet()
_inherited: Final[list[object]] = []


def forget_in_child(thing: Forgetful) -> None:
    """Let something begin again in every child that forks while it exists."""
    _forgetful.add(thing)


def keep_inherited(thing: object) -> None:
    """Keep what a parent had open, in the child: freeing it would close it."""
    _inherited.append(thing)


def _forget() -> None:
    for thing in list(_forgetful):
        thing.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
