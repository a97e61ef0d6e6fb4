"""A writer's cache of its memories' owners.

Each record contains its memory's owner, so that an index finds an owner's records in order. Once
the store has an owner, each memory that is written gets a row in `owners`, without scopes if its
owner is not known. So two transactions that write a memory's first record conflict there, and one
of them looks again.

The cache is valid while `owners_state.number` is unchanged; each statement that adds records
compares it. The number changes when an owner is given to a memory that has records, and when owners
are removed. Before the first owner it is 0. Everywhere but in the table itself, the number includes
the transaction that wrote the row (`OWNERS_NUMBER`), except on a Citus cluster, whose nodes have a
row each.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from async_history._core.records.owners import Owner
from async_history._core.records.records import MEMORY_ID, OWNER, Fields
from async_history._postgres.detail_columns import OwnerByMemory
from async_history._postgres.writing.erased_names import memory_digests

_MOST: Final = 65_536
"""Most memories in the cache: their names and the dict take about 10 MB."""


@dataclass(frozen=True, slots=True)
class OwnersFound:
    """The owners of memories as they were found.

    Args:
        number: the number of `owners_state` at that time; 0 if the store has no owners.
        rows: the memories with a row in `owners`.
        others: the memories with records but without a row, with the owner of their records.
        erased_at: when a name was last erased, in microseconds since 1970.
    """

    number: int = 0
    rows: OwnerByMemory = field(default_factory=dict)
    others: OwnerByMemory = field(default_factory=dict)
    erased_at: int | None = None

    def owners(self) -> dict[str, Owner]:
        """Return the memories' owners, where they have one."""
        seen = {**self.others, **self.rows}
        return {name: owner for name, owner in seen.items() if owner is not None}

    def owner(self, memory_id: str) -> Owner | None:
        """Return a memory's owner."""
        return self.rows.get(memory_id) or self.others.get(memory_id)

    def has(self, memory_id: str) -> bool:
        """Return whether a memory may have records."""
        return memory_id in self.rows or memory_id in self.others

    def of(self, names: Sequence[str]) -> "OwnersFound":
        """Return what was found of these memories."""
        return replace(
            self,
            rows={name: self.rows[name] for name in names if name in self.rows},
            others={
                name: self.others[name]
                for name in names
                if name in self.others and name not in self.rows
            },
        )


class KnownOwners:
    """The writer's cache of owners, for a bounded number of memories."""

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._known: dict[str, Owner | None] = {}
        self.number = 0
        self.erased_at: int | None = None

    def learn(self, number: int, rows: OwnerByMemory, erased_at: int | None) -> None:
        """Add rows of `owners`, as of this number of `owners_state`."""
        if number != self.number:
            self._known.clear()
            self.number = number
            self.erased_at = erased_at
        if not number:
            return
        self._known.update(rows)
        if len(self._known) > self._most:
            self._known = dict(list(self._known.items())[-self._most // 2 :])

    def expected(self, fields: Fields) -> Owner | None:
        """Return the owner that the memory of a new record is likely to have."""
        owner = self._known.get(fields[MEMORY_ID])
        given: Owner | None = fields[OWNER]
        return given if owner is None else owner

    def unknown(self, fields: Iterable[Fields]) -> list[Fields]:
        """Return the records whose memories are not in the cache."""
        return [one for one in fields if one[MEMORY_ID] not in self._known]

    def found(self, names: Sequence[str], *, gives_owners: bool) -> OwnersFound | None:
        """Return the owners of memories as of `number`; None if one has to be looked up."""
        if not self.number:
            return None if gives_owners else OwnersFound()
        known = self._known
        rows = {name: known[name] for name in names if name in known}
        if len(rows) < len(names):
            return None
        return OwnersFound(self.number, rows, erased_at=self.erased_at)

    def plan(self, fields: Sequence[Fields]) -> "OwnersPlan | None":
        """Return the owners of these records' memories, if that needs no look-up.

        None if a record gives the store its first owner, or a memory an owner that it lacks, or a
        different one.
        """
        if not self.number:
            return None if [one for one in fields if one[OWNER] is not None] else _NO_OWNERS
        owners: dict[str, Owner | None] = {}
        new: dict[str, Owner | None] = {}
        known = self._known
        for one in fields:
            name, given = one[MEMORY_ID], one[OWNER]
            if name in owners:
                owner = owners[name]
            elif name in known:
                owner = owners[name] = known[name]
            else:
                owner = owners[name] = new[name] = given
            if given is None or given is owner:
                continue
            if owner is None and name in new:
                owners[name] = new[name] = given
            elif owner is None or owner.contradictions(given):
                return None
        digests = None if self.erased_at is None else memory_digests(owners)
        return OwnersPlan(self.number, owners, new, digests)


@dataclass(frozen=True, slots=True)
class OwnersPlan:
    """The owners of some records' memories.

    Args:
        number: the number of `owners_state` for which this is valid.
        owners: the owner of each memory.
        new: the memories that get a row in `owners`.
        digests: the digests of the memories, none of which may have been erased; None if that was
            looked up.
    """

    number: int
    owners: OwnerByMemory
    new: OwnerByMemory
    digests: str | None = None


_NO_OWNERS: Final = OwnersPlan(0, {}, {})
