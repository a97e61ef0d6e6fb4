"""The keys that a store has, in two tables of their own, for every database alike.

A wrapping key is wrapped by a master key of the ring. It wraps the data keys, one or more an owner,
of which the tables have only digests. `uses` counts how often a data key may have been used, by
all who ever had it; `erased` marks those whose owner is being erased, which seal nothing any more.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from async_history._core.erased_names import Name, name_digest
from async_history._core.owners import SCOPES, Owner, owner_text

INDEX: Final = "index"
"""In place of an owner's digest: the key of the tokens that records are found by, one a store."""
OFF: Final = "off"
"""The id and the owner of a key that seals nothing: while it is there, what is recorded stays in
clear. Only who has the store's keys can make it."""
MOST_USES: Final = 1 << 32
"""How often a key may be used with random nonces (NIST SP 800-38D, 8.3). One that was used so often
is retired: it opens what it sealed, and seals nothing more."""
KEY_COLUMNS: Final = ("id", "owner", *SCOPES, "wrapping_key", "wrapped", "uses", "erased")
"""The columns of a data key. Each scope of its owner is there as a digest."""


Statement = Any
"""What a database's `Run` runs: the text of SQL, or a statement of SQLAlchemy."""


class WrappingKey(NamedTuple):
    """A wrapping key, as it is stored."""

    id: str
    master: str
    wrapped: str


class StoredKey(NamedTuple):
    """A data key, as it is stored."""

    id: str
    owner: str
    wrapping_key: str
    wrapped: str
    uses: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyStatements:
    """The statements of a database. What takes several takes one list.

    Attributes:
        wrapping: all wrapping keys; their three columns.
        add_wrapping: takes the three columns.
        remove_wrapping: removes those that wrap no data key and are not the given one.
        count_usable: how many keys of some ids are there, and not retired.
        keys: those of some ids; the five columns of `StoredKey`, as all that follow.
        of_owners: those of some owners' digests that are not erased.
        wrapped_by_others: up to so many that another wrapping key than the given one wraps, after
            an id, in their order.
        count_wrapped_by_others: how many those are.
        add: takes all columns of a data key but `erased`.
        reserve: adds uses to a key: takes how many, and the id.
        rewrap: takes the wrapping key, what is wrapped and the id.
        is_whole: whether all causes are sealed, as `begin` and `encrypt` note it, and none in clear
            came since, of a program without keys.
        begin: notes, as the first statement, whether every cause so far is sealed.
        mark: marks an owner's keys as erased, by scope: each takes a digest of the scope's id.
        count_marked: how many of an owner's keys are marked; by scope, as all of `mark`.
        destroy: removes those of an owner that are marked.
    """

    wrapping: Statement
    add_wrapping: Statement
    remove_wrapping: Statement
    count_usable: Statement
    keys: Statement
    of_owners: Statement
    wrapped_by_others: Statement
    count_wrapped_by_others: Statement
    add: Statement
    reserve: Statement
    rewrap: Statement
    begin: Statement
    is_whole: Statement
    mark: dict[str, Statement]
    count_marked: dict[str, Statement]
    destroy: dict[str, Statement]


Run = Callable[..., Awaitable[Sequence[Sequence[Any]]]]
"""Run one statement with its parameters, and return its rows."""


class KeyTable:
    """Runs the statements of a database, inside a transaction or to read.

    Args:
        run: runs one statement.
    """

    def __init__(self, statements: KeyStatements, run: Run) -> None:
        self._sql = statements
        self._run = run

    async def wrapping(self) -> list[WrappingKey]:
        """Return all wrapping keys."""
        return [WrappingKey(*row) for row in await self._run(self._sql.wrapping)]

    async def add_wrapping(self, key: WrappingKey) -> None:
        """Add a wrapping key."""
        await self._run(self._sql.add_wrapping, *key)

    async def remove_wrapping(self, but: str) -> None:
        """Remove the wrapping keys that wrap no data key, but one."""
        await self._run(self._sql.remove_wrapping, but)

    async def keys(self, ids: Sequence[str]) -> list[StoredKey]:
        """Return the data keys of some ids."""
        return [StoredKey(*row) for row in await self._run(self._sql.keys, list(ids))]

    async def of_owners(self, owners: Sequence[str]) -> list[StoredKey]:
        """Return the data keys of some owners that may seal."""
        return [StoredKey(*row) for row in await self._run(self._sql.of_owners, list(owners))]

    async def wrapped_by_others(self, than: str, after: str, limit: int) -> list[StoredKey]:
        """Return data keys that another wrapping key wraps, in the order of their ids."""
        rows = await self._run(self._sql.wrapped_by_others, than, after, limit)
        return [StoredKey(*row) for row in rows]

    async def count_wrapped_by_others(self, than: str) -> int:
        """Return how many data keys another wrapping key wraps."""
        ((count,),) = await self._run(self._sql.count_wrapped_by_others, than)
        return int(count)

    async def add(self, keys: Sequence[tuple[StoredKey, Owner | None]]) -> None:
        """Add data keys, each of an owner."""
        for each in keys:
            await self._run(self._sql.add, *columns_of_key(*each))

    async def reserve(self, uses: Sequence[tuple[str, int]]) -> None:
        """Count uses of data keys, given by id, before they happen."""
        for key_id, count in uses:
            await self._run(self._sql.reserve, count, key_id)

    async def rewrap(self, key_id: str, wrapping_key: str, wrapped: str) -> None:
        """Replace what a data key is wrapped by."""
        await self._run(self._sql.rewrap, wrapping_key, wrapped, key_id)

    async def begin(self) -> None:
        """Note whether there are causes in clear, as encryption is turned on."""
        await self._run(self._sql.begin)

    async def is_whole(self) -> bool:
        """Return whether all causes are sealed: not where encryption is turned off."""
        rows = await self._run(self._sql.is_whole)
        return bool(rows and rows[0][0])

    async def lacks(self, ids: Sequence[str]) -> bool:
        """Return whether one of some data keys is not there, or retired."""
        counts = await self._run(self._sql.count_usable, list(ids))
        return sum(int(count) for (count,) in counts) < len(ids)

    async def mark(self, names: Sequence[Name]) -> None:
        """Mark the data keys of owners as erased, in the transaction that notes the erasure."""
        for name in names:
            if name[0] in self._sql.mark:
                await self._run(self._sql.mark[name[0]], name_digest(name).hex())

    async def destroy(self, owner: Name) -> int:
        """Remove the data keys of an owner that are marked; return how many they were.

        Those of others are of erasures that are under way, or were interrupted.
        """
        scope, digest = owner[0], name_digest(owner).hex()
        ((count,),) = await self._run(self._sql.count_marked[scope], digest)
        if count:
            await self._run(self._sql.destroy[scope], digest)
        return int(count)


def columns_of_key(key: StoredKey, owner: Owner | None) -> tuple[str | int | None, ...]:
    """Return all columns of an owner's data key but `erased`."""
    scopes = {} if owner is None else owner.as_dict()
    digests = [name_digest((n, scopes[n])).hex() if n in scopes else None for n in SCOPES]
    return key.id, key.owner, *digests, key.wrapping_key, key.wrapped, key.uses


def owner_digest(owner: Owner | None) -> str:
    """Return what the table has of a whole owner; "" for what has none."""
    text = owner_text(owner)
    return "" if text is None else blake2b(text.encode(), digest_size=16).hexdigest()
