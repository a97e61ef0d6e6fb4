"""A store's keys in two tables, the same for every database.

A wrapping key is wrapped by a master key of the ring. It wraps the data keys, one or more per
owner. The tables have only digests of owners. `uses` counts how often a data key may have been used
by all its holders. `erased` marks the keys of an owner that is being erased: they seal no more
texts.
"""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from async_history._core.records.owners import SCOPES, Owner, owner_text
from async_history._core.writing.erased_names import Name, name_digest

INDEX: Final = "index"
"""Instead of an owner's digest: the key of the tokens in the index of causes, one per store."""
OFF: Final = "off"
TURNING_ON: Final = "turning on"
MARKS: Final = (OFF, TURNING_ON)
"""The ids, and the owners, of keys that seal nothing. A store has one of them or none. While it has
one, a text that names no data key of the store is clear, even if it looks sealed. Without one, each
text that looks sealed is.

`OFF` exists from the beginning of a decryption: new records stay in clear. `TURNING_ON` exists
until all earlier texts that look sealed have been sealed. Only a program with the store's keys can
make them.
"""
MOST_USES: Final = 1 << 32
"""How often a key may be used with random nonces (NIST SP 800-38D, 8.3). Then it is retired: it
still opens texts, but seals no more.
"""
Statement = Any
"""A statement for a database's `Run`: SQL text, or a SQLAlchemy statement."""


class WrappingKey(NamedTuple):
    """A stored wrapping key."""

    id: str
    master: str
    wrapped: str


class StoredKey(NamedTuple):
    """A stored data key. Its owner, and each scope of it, is stored as a digest."""

    id: str
    owner: str
    user_id: str | None
    agent_id: str | None
    run_id: str | None
    app_id: str | None
    wrapping_key: str
    wrapped: str
    uses: int

    @property
    def place(self) -> bytes:
        """What is authenticated with the key: its id and its owner, which never change."""
        return "\0".join(("async_history data key", *map(str, self[:_NAMES]))).encode()


KEY_COLUMNS: Final = StoredKey._fields
"""The columns of a data key, without its mark `erased`."""
_NAMES: Final = KEY_COLUMNS.index("wrapping_key")
OwnerDigests = tuple[str, str | None, str | None, str | None, str | None]
"""The digests of an owner and of its four scopes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyStatements:
    """The statements of a database. Several values are passed as one list.

    Attributes:
        wrapping: all wrapping keys; their three columns.
        add_wrapping: takes the three columns.
        remove_wrapping: removes wrapping keys that wrap no data key, except the given one.
        count_usable: the number of keys with some ids that exist and are not retired.
        keys: the keys with some ids; the columns of `StoredKey`, as all following statements.
        of_owners: the keys of some owners' digests that are not erased.
        wrapped_by_others: keys that another wrapping key than the given one wraps, after an id, in
            the order of ids, up to a limit.
        count_wrapped_by_others: their number.
        reserve: adds uses to the keys with some ids: takes the ids and the number.
        rewrap: takes the wrapping key, the wrapped key and the id.
        remove: removes the keys with some ids, except those whose owner is being erased.
        is_whole: whether all causes are sealed, as `begin` and `encrypt` noted, and no program
            without keys has added clear ones since.
        begin: notes, as the first statement, whether every cause so far is sealed.
        mark: by scope, marks an owner's keys as erased: takes a digest of the scope's id.
        marked: by scope, the ids of an owner's marked keys.
        destroy: removes the marked keys with some ids.
    """

    wrapping: Statement
    add_wrapping: Statement
    remove_wrapping: Statement
    count_usable: Statement
    keys: Statement
    of_owners: Statement
    wrapped_by_others: Statement
    count_wrapped_by_others: Statement
    reserve: Statement
    rewrap: Statement
    remove: Statement
    begin: Statement
    is_whole: Statement
    mark: dict[str, Statement]
    marked: dict[str, Statement]
    destroy: Statement


Run = Callable[..., Awaitable[Sequence[Sequence[Any]]]]
"""Run one statement with its parameters, and return its rows."""


class KeyReads:
    """Runs a database's statements that read.

    Args:
        run: runs one statement.
    """

    def __init__(self, statements: KeyStatements, run: Run) -> None:
        self._sql = statements
        self._run = run

    async def wrapping(self) -> list[WrappingKey]:
        """Return all wrapping keys."""
        return [WrappingKey(*row) for row in await self._run(self._sql.wrapping)]

    async def keys(self, ids: Sequence[str]) -> list[StoredKey]:
        """Return the data keys with some ids."""
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

    async def is_whole(self) -> bool:
        """Return whether all causes are sealed; False if encryption is turned off."""
        rows = await self._run(self._sql.is_whole)
        return bool(rows and rows[0][0])

    async def lacks(self, ids: Sequence[str]) -> bool:
        """Return whether one of some data keys is missing or retired."""
        counts = await self._run(self._sql.count_usable, list(ids))
        return sum(int(count) for (count,) in counts) < len(ids)


class KeyTable(KeyReads, ABC):
    """Runs a database's statements, in a transaction."""

    async def add_wrapping(self, key: WrappingKey) -> None:
        """Add a wrapping key."""
        await self._run(self._sql.add_wrapping, *key)

    async def remove_wrapping(self, but: str) -> None:
        """Remove the wrapping keys that wrap no data key, except `but`."""
        await self._run(self._sql.remove_wrapping, but)

    @abstractmethod
    async def add(self, keys: Sequence[StoredKey]) -> None:
        """Add data keys."""

    async def reserve(self, uses: Sequence[tuple[str, int]]) -> None:
        """Count uses of data keys, given by id, before they happen."""
        ids = defaultdict(list)
        for key_id, count in uses:
            ids[count].append(key_id)
        for count, some in ids.items():
            await self._run(self._sql.reserve, some, count)

    async def rewrap(self, key_id: str, wrapping_key: str, wrapped: str) -> None:
        """Replace the wrapping of a data key."""
        await self._run(self._sql.rewrap, wrapping_key, wrapped, key_id)

    async def remove(self, ids: Sequence[str]) -> None:
        """Remove data keys, except those whose owner is being erased."""
        await self._run(self._sql.remove, list(ids))

    async def begin(self) -> None:
        """Note, when encryption is turned on, whether there are clear causes."""
        await self._run(self._sql.begin)

    async def mark(self, names: Sequence[Name]) -> list[str]:
        """Mark the data keys of owners as erased, in the transaction that notes the erasure.

        Returns the ids of their marked keys: the erasure destroys these. Keys that are marked later
        belong to other erasures, which have their own texts to erase before.
        """
        marked: list[str] = []
        for name in names:
            if name[0] in self._sql.mark:
                digest = name_digest(name).hex()
                await self._run(self._sql.mark[name[0]], digest)
                marked += [key for (key,) in await self._run(self._sql.marked[name[0]], digest)]
        return marked

    async def destroy(self, key_ids: Sequence[str]) -> None:
        """Remove data keys that `mark` returned."""
        await self._run(self._sql.destroy, list(key_ids))


def owner_digests(owner: Owner | None) -> OwnerDigests:
    """Return the digests of an owner for the table."""
    scopes = {} if owner is None else owner.as_dict()
    user_id, agent_id, run_id, app_id = [
        name_digest((name, scopes[name])).hex() if name in scopes else None for name in SCOPES
    ]
    return owner_digest(owner), user_id, agent_id, run_id, app_id


def no_owner(name: str) -> OwnerDigests:
    """Return the digests of a key that seals no texts: `INDEX` or one of `MARKS`."""
    return name, None, None, None, None


def owner_digest(owner: Owner | None) -> str:
    """Return the digest of an owner for the table; "" for no owner."""
    text = owner_text(owner)
    return "" if text is None else blake2b(text.encode(), digest_size=16).hexdigest()
