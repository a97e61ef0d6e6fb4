"""Owners that this process has forgotten.

An operation that began before must not bring anything back. The history refuses its records,
whichever process erased the owner, but by then the vector store has changed. Within this process,
the operation can be refused before that.
"""

from collections.abc import Mapping
from datetime import datetime
from itertools import islice
from typing import Any, Final
from weakref import WeakKeyDictionary

from async_history._core.records.owners import SCOPES
from async_history._core.writing.erased_names import Name, name_digest
from async_history.errors import Erased
from async_history.mem0._turns.turn_queues import TurnQueues

_KEPT: Final = 1_000
"""Most owners kept here. An operation that began before more owners than these were forgotten is
refused by the history.
"""


class ErasedHere:
    """The owners that this process has forgotten in one store."""

    def __init__(self) -> None:
        self._latest: datetime | None = None
        self._at: Mapping[bytes, datetime] = {}

    def note(self, owner: Name, at: datetime) -> None:
        """Note that an owner was forgotten: operations that began until then are refused."""
        digest = name_digest(owner)
        others = [one for one in self._at.items() if one[0] != digest]
        kept = dict(islice(others, max(0, len(others) - _KEPT + 1), None))
        self._at = {**kept, digest: at}
        self._latest = at

    def require_not_erased(
        self, memory_id: str, payload: Mapping[str, Any], began: datetime | None
    ) -> None:
        """Check that an operation that began at an instant may write a memory's payload.

        Raises:
            Erased: its owner has been forgotten since.
        """
        latest = self._latest
        if latest is None or (began is not None and began > latest):
            return
        for scope in SCOPES:
            value = payload.get(scope)
            at = None if value is None else self._at.get(name_digest((scope, str(value))))
            if at is not None and (began is None or began <= at):
                raise Erased(memory_id, scope)


_of_stores: Final["WeakKeyDictionary[TurnQueues, ErasedHere]"] = WeakKeyDictionary()


def erased_here(queues: TurnQueues) -> ErasedHere:
    """Return the owners that this process has forgotten in the store of these turns."""
    return _of_stores.setdefault(queues, ErasedHere())
