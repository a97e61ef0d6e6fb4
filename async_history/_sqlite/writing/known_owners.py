"""A writer's cache of the owners of memories. Its statements check what they use of it."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Final

from async_history._core.records.records import MEMORY_ID, OWNER, Fields, HistoryRecord
from async_history._core.writing.erased_names import earliest_begin
from async_history._core.writing.submissions import AddRecords
from async_history._sqlite.index import StoredOwner
from async_history._sqlite.writing.add import ExpectedOwners, Noted

_NOTHING: Final = Noted()
_MOST: Final = 32_768
"""Most memories in the cache: some megabytes."""


class KnownOwners:
    """Owners by memory, with their numbers. They may be outdated, so each statement checks them.

    Attributes:
        is_needed: whether any memory may have an owner, or may have been erased with one.
    """

    def __init__(self) -> None:
        self.is_needed = False
        self._owners: dict[str, StoredOwner] = {}
        self._next_number: int | None = None
        self._noted = 0

    def expected(
        self, records: Sequence[Fields], additions: Sequence[AddRecords]
    ) -> ExpectedOwners | None:
        """Return the expected owner of each record's memory; None if it must be looked up.

        An unknown memory that is given an owner is assumed to be new.
        """
        owners: list[StoredOwner | None] = []
        new: dict[str, StoredOwner] = {}
        without: set[str] = set()
        is_complete = True
        known = self._owners
        for record in records:
            memory_id, given = record[MEMORY_ID], record[OWNER]
            stored = known.get(memory_id) or new.get(memory_id)
            if stored is None:
                if given is None:
                    without.add(memory_id)
                elif memory_id in without or self._next_number is None:
                    return None
                else:
                    stored = new[memory_id] = StoredOwner(given, self._next_number + len(new))
            elif given is not stored.owner:
                if given is not None and stored.owner.contradictions(given):
                    return None
                is_complete = False
            owners.append(stored)
        checked = without if self.is_needed or new else None
        begun = earliest_begin(additions) if self._noted else 0
        return ExpectedOwners(owners, set(new), checked, self._noted, begun, new, is_complete)

    def noted(self, additions: Sequence[AddRecords]) -> Noted:
        """Return the state of erased names that plain records assume."""
        return Noted(self._noted, earliest_begin(additions)) if self._noted else _NOTHING

    def written(self, additions: Sequence[AddRecords], expected: ExpectedOwners) -> None:
        """Set the owners of records, which were as expected, and add new ones to the cache."""
        if expected.given:
            self._owners |= expected.given
            self._next_number = max(stored.number for stored in expected.given.values()) + 1
            self.is_needed = True
            self._limit()
        if not expected.is_complete:
            owners = iter([stored and stored.owner for stored in expected.owners])
            for submission in additions:
                submission.give_owners(list(islice(owners, submission.record_count)))

    def note(self, noted: int, *, has_erased_memory: bool) -> None:
        """Clear the cache if names were erased since."""
        if noted != self._noted:
            self._owners.clear()
            self._noted = noted
        self.is_needed = self.is_needed or has_erased_memory

    def learn(
        self, records: Iterable[HistoryRecord], owners: Mapping[str, StoredOwner], last_number: int
    ) -> None:
        """Add the owners that a transaction has found for records' memories, or given them.

        Args:
            last_number: the highest number of an owner.
        """
        self._next_number = last_number + 1
        for record in records if owners or self._owners else ():
            stored = owners.get(record.memory_id)
            if stored is not None:
                self._owners[record.memory_id] = stored
            else:
                self._owners.pop(record.memory_id, None)
        self.is_needed = self.is_needed or last_number > 0
        self._limit()

    def _limit(self) -> None:
        if len(self._owners) > _MOST:
            for memory_id in list(self._owners)[: len(self._owners) - _MOST // 2]:
                del self._owners[memory_id]
