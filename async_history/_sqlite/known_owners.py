"""The owners of memories that a writer has seen: what its statements expect, and check."""

from collections.abc import Iterable, Sequence
from typing import Final

from async_history._core.owners import Owner
from async_history._core.records import HistoryRecord, give_owner
from async_history._sqlite.index import EXPECTS_GIVEN, EXPECTS_KNOWN, EXPECTS_NONE
from async_history._sqlite.write_program import Expected

_MOST: Final = 32_768
"""Memories whose owner is remembered: some megabytes."""


class KnownOwners:
    """Owners by memory. They may be wrong by now: each statement checks what it expects.

    Attributes:
        is_needed: whether any memory may have an owner.
    """

    def __init__(self) -> None:
        self.is_needed = False
        self._owners: dict[str, Owner] = {}

    def expected(self, records: Sequence[HistoryRecord]) -> list[Expected] | None:
        """Return what to expect of each record's memory; None if that must be looked up."""
        expected: list[Expected] = []
        seen: dict[str, Owner | None] = {}
        for record in records:
            memory_id, given = record.memory_id, record.owner
            if memory_id in seen:
                owner = seen[memory_id]
                expects = EXPECTS_NONE if owner is None else EXPECTS_KNOWN
            elif (known := self._owners.get(memory_id)) is not None:
                owner, expects = known, EXPECTS_KNOWN
            else:
                owner, expects = given, EXPECTS_NONE if given is None else EXPECTS_GIVEN
            if given not in (None, owner) and (owner is None or owner.contradictions(given)):
                return None
            seen[memory_id] = owner
            expected.append(Expected(owner, expects))
        return expected

    def written(self, records: Iterable[HistoryRecord], expected: Iterable[Expected]) -> None:
        """Give records their owners, which were found to be as expected, and remember them."""
        for record, (owner, _) in zip(records, expected, strict=True):
            if owner is not None:
                if record.owner is not owner:
                    give_owner(record, owner)
                self._owners[record.memory_id] = owner
                self.is_needed = True
        self._limit()

    def learn(self, records: Iterable[HistoryRecord]) -> None:
        """Remember the owners that a transaction has found or given."""
        for record in records:
            if record.owner is not None:
                self._owners[record.memory_id] = record.owner
                self.is_needed = True
            else:
                self._owners.pop(record.memory_id, None)
        self._limit()

    def _limit(self) -> None:
        if len(self._owners) > _MOST:
            for memory_id in list(self._owners)[: len(self._owners) - _MOST // 2]:
                del self._owners[memory_id]
