# mypy: disable-error-code=import-untyped
"""The owners that a batch's transaction looks up and writes, besides the records.

Giving an owner to a memory with records, or the first owner to a store, locks a table. The lock
waits for all transactions that write records, and others wait for the lock. So it waits at most a
tenth of a second for each of two tables, and is retried. Owners of new memories need no lock.
"""

import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

import asyncpg

from async_history._core.records.owners import Owner
from async_history._core.records.records import HistoryRecord
from async_history._core.writing.erased_names import Name, names_in
from async_history._core.writing.submissions import Submission
from async_history._postgres.detail_columns import (
    OWNERS_NUMBER,
    SCOPE_LIST,
    owner_of,
    scopes_of,
)
from async_history._postgres.errors import storage_error
from async_history._postgres.schema import in_schema
from async_history._postgres.transaction import savepoint
from async_history._postgres.writing.add import REPLACE_OWNERS, owner_rows
from async_history._postgres.writing.erased_names import FIND_ERASED, digests_of, found_erased
from async_history._postgres.writing.owners import (
    KnownOwners,
    OwnersFound,
    OwnersPlan,
)
from async_history.errors import StorageCorrupt, StorageRefused

_FIND: Final = f"""
SELECT {OWNERS_NUMBER}, erased_at, memory_id, {SCOPE_LIST} FROM {{schema}}.owners_state
LEFT JOIN {{schema}}.owners ON memory_id = ANY($1::pg_catalog.text[])
"""
_STATE: Final = f"SELECT {OWNERS_NUMBER}, erased_at FROM {{schema}}.owners_state"
_ROWS: Final = f"""
SELECT memory_id, {SCOPE_LIST} FROM {{schema}}.owners WHERE memory_id = ANY($1::pg_catalog.text[])
"""
_OF_RECORDS: Final = f"""
SELECT named.name, {SCOPE_LIST} FROM pg_catalog.unnest($1::pg_catalog.text[]) AS named (name)
CROSS JOIN LATERAL (
    SELECT {SCOPE_LIST} FROM {{schema}}.history WHERE memory_id = named.name
    ORDER BY seq DESC LIMIT 1
) AS latest
"""
_OF_LATEST: Final = f"""
SELECT memory_id, {SCOPE_LIST} FROM {{schema}}.history WHERE memory_id = $1::pg_catalog.text
ORDER BY seq DESC LIMIT 1
"""
"""For a Citus cluster, whose nodes can't join a list with a table row by row."""
_ISOLATION: Final = "SELECT pg_catalog.current_setting('transaction_isolation')"
_READ_COMMITTED: Final = "read committed"
_LOCKED_STATE: Final = f"{_STATE} FOR SHARE"
_WAIT: Final = "SELECT pg_catalog.current_setting('lock_timeout')"
_SET_WAIT: Final = "SELECT pg_catalog.set_config('lock_timeout', $1::pg_catalog.text, true)"
_SHORT_WAIT: Final = "100ms"
"""Short, because all writers of records wait too."""
_LOCKS: Final = (
    "LOCK TABLE {schema}.history IN SHARE ROW EXCLUSIVE MODE",
    "LOCK TABLE {schema}.owners_state IN ACCESS EXCLUSIVE MODE",
)
"""Either one excludes all transactions that write records, because they compare the number. The
first one waits for a VACUUM of the history, the second one for a reader of all tables (pg_dump)."""
_TAKE_TURN: Final = """
SELECT pg_catalog.pg_advisory_xact_lock(
    pg_catalog.hashtextextended('async_history owners ' || $1::pg_catalog.text, 0)
)
"""
"""Waiting for it keeps no writer from a table."""
NEXT_NUMBER: Final = """
UPDATE {schema}.owners_state
SET last = last + 1::pg_catalog.int8, number = last + 1::pg_catalog.int8 RETURNING number
"""
_NUMBER_AFTER: Final = NEXT_NUMBER.replace(
    "RETURNING number",
    f"WHERE {OWNERS_NUMBER} = $1::pg_catalog.int8 RETURNING {OWNERS_NUMBER}",
)
FORGET_OWNERS: Final = """
UPDATE {schema}.owners_state SET
    number = CASE WHEN erased_at IS NULL THEN 0::pg_catalog.int8 ELSE last + 1::pg_catalog.int8 END,
    last = CASE WHEN erased_at IS NULL THEN last ELSE last + 1::pg_catalog.int8 END
WHERE number > 0::pg_catalog.int8
"""
"""Run after `owners` was emptied, with the history locked. Erased names stay known."""
HAS_OWNERS: Final = "SELECT true FROM {schema}.owners_state WHERE number > 0::pg_catalog.int8"
REMOVE_OWNERS: Final = """
DELETE FROM {schema}.owners WHERE memory_id = ANY($1::pg_catalog.text[]) AND NOT EXISTS (
    SELECT FROM {schema}.history WHERE history.memory_id = owners.memory_id
) RETURNING memory_id
"""
"""Removes the owners of memories without records; `NEXT_NUMBER` follows it. Another transaction may
just add a record with the owner from its cache. Then the next writer of the memory finds the owner
in that record."""
_FILL: Final = """
UPDATE {schema}.history SET user_id = $2, agent_id = $3, run_id = $4, app_id = $5
WHERE memory_id = ANY($1::pg_catalog.text[])
"""
_NOT_FILLED: Final = """
SELECT true FROM {schema}.history WHERE memory_id = ANY($1::pg_catalog.text[]) AND (
    user_id IS DISTINCT FROM $2::pg_catalog.text OR agent_id IS DISTINCT FROM $3::pg_catalog.text
    OR run_id IS DISTINCT FROM $4::pg_catalog.text OR app_id IS DISTINCT FROM $5::pg_catalog.text
) LIMIT 1
"""


NUMBER: Final = "SELECT number FROM {schema}.owners_state"


def require_one(rows: Sequence[Sequence[Any]]) -> int:
    """Return the number of `owners_state` from the rows of `NUMBER`.

    Raises:
        StorageCorrupt: the table has lost its row, or has more than one.
    """
    if len(rows) > 1:
        raise StorageCorrupt(
            f"the table owners_state has {len(rows)} rows instead of one: delete those that are "
            "not the backup's"
        )
    return _state_of([(*row, None) for row in rows])[0]


def _state_of(rows: Sequence[Sequence[Any]]) -> tuple[int, int | None]:
    """Return the number of `owners_state` and the instant of the last erasure.

    Raises:
        StorageCorrupt: the table has lost its row.
    """
    if not rows:
        raise StorageCorrupt(
            "the table owners_state has lost its row, or a policy hides it from this role: without "
            "it, a record could miss its memory's owner, or bring back an erased name. Restore the "
            "row, see the guide on PostgreSQL, Lost rows and columns"
        )
    number, erased_at = rows[0][:2]
    return int(number), None if erased_at is None else int(erased_at)


class _OwnersChanged(asyncpg.SerializationError):  # type: ignore[misc]
    """Others have changed owners between our look-up and our write; a retry may succeed."""


def _changed() -> _OwnersChanged:
    return _OwnersChanged("the owners of these memories were changed meanwhile")


def have_owners_changed(error: BaseException) -> bool:
    """Return whether others have changed owners between our look-up and our write."""
    return isinstance(error, _OwnersChanged) or (
        isinstance(error, asyncpg.UniqueViolationError)
        and (error.constraint_name or "").startswith("owners_pkey")
    )


class OwnersUnlocked(Exception):
    """A transaction of the user gives owners late, and has looked owners up before it locked them.

    If it took the lock now, it could deadlock with another one that does the same. So it is rolled
    back to the savepoint before the look-up, which releases what that has locked, and begins with
    `OwnerSteps.lock`.
    """


_NOTHING_FOUND: Final = OwnersFound()


class OwnerSteps:
    """The look-ups and writes of the owners of one batch's memories, in its transaction.

    Args:
        schema: the quoted schema.
        where: the server, for messages.
        known: the cache of the memories' owners.
        is_distributed: whether the tables are distributed over the nodes of a Citus cluster.
        owns_transaction: False in a transaction of the user. Ours is read committed, and is retried
            after a deadlock.
    """

    def __init__(
        self,
        connection: Any,
        schema: str,
        where: str,
        known: KnownOwners,
        *,
        is_distributed: bool,
        owns_transaction: bool,
    ) -> None:
        self._connection = connection
        self._schema = schema
        self._where = where
        self._known = known
        self._is_distributed = is_distributed
        self._is_read_committed: bool | None = owns_transaction or None
        self._may_lock_late = owns_transaction
        self._is_locked = False
        self.found = _NOTHING_FOUND
        """The owners as they will be after the commit."""
        self.has_looked = False
        """Whether owners or erased names were looked up in this transaction."""

    async def _fetch(self, sql: str, *arguments: Any) -> Sequence[Sequence[Any]]:
        if self._is_distributed:  # each node has a row of its own
            sql = sql.replace(OWNERS_NUMBER, "number")
        return list(await self._connection.fetch(in_schema(sql, self._schema), *arguments))

    async def _execute(self, sql: str, *arguments: Any) -> None:
        await self._connection.execute(in_schema(sql, self._schema), *arguments)

    async def locked_number(self) -> int:
        """Lock `owners_state` until the transaction ends, and return its number."""
        return (await self._state(_LOCKED_STATE))[0]

    async def _state(self, sql: str) -> tuple[int, int | None]:
        return _state_of(await self._fetch(sql))

    async def erased(self, batch: Sequence[Submission]) -> Mapping[Name, datetime]:
        """Return the erased names of a batch, each with the instant of its erasure."""
        if self.has_looked and self.found.erased_at is None:
            return {}  # no name was erased; the statements that write check that
        if self._is_distributed:
            await self.locked_number()
        digests = digests_of(names_in(batch))
        rows = await self._fetch(FIND_ERASED, list(digests))
        number, erased_at = _state_of(rows)
        if self.has_looked and number != self.found.number:
            raise _changed()
        self.found = replace(self.found, number=number, erased_at=erased_at)
        self.has_looked = True
        return found_erased(rows, digests)

    async def find(self, memory_ids: Iterable[str], *, gives_owners: bool) -> OwnersFound:
        """Return the stored owners of memories.

        Args:
            gives_owners: whether a record to write gives its memory an owner.
        """
        names = list(dict.fromkeys(memory_ids))
        if self._is_read_committed is None:
            ((isolation,),) = await self._fetch(_ISOLATION)
            self._is_read_committed = isolation == _READ_COMMITTED
        self.found = await self._find(names, gives_owners)
        self.has_looked = True
        return self.found

    async def _find(self, names: Sequence[str], gives_owners: bool) -> OwnersFound:
        rows: Sequence[Sequence[Any]]
        cached = self._known.found(names, gives_owners=gives_owners)
        locks = self._is_distributed or not self._is_read_committed
        if locks or cached is not None:
            number, erased_at = await self._state(_LOCKED_STATE if locks else _STATE)
            if cached is not None and cached.number == number:
                return cached
        if locks:
            rows = await self._fetch(_ROWS, names)
        else:
            found = await self._fetch(_FIND, names)
            number, erased_at = _state_of(found)
            rows = [row[2:] for row in found if row[2] is not None]
        known = {row[0]: owner_of(*row[1:]) for row in rows}
        if not number and not gives_owners:
            return OwnersFound()
        others = [name for name in names if name not in known]
        if self._is_distributed:
            rows = [row for name in others for row in await self._fetch(_OF_LATEST, name)]
        else:
            rows = await self._fetch(_OF_RECORDS, others) if others else []
        others_found = {row[0]: owner_of(*row[1:]) for row in rows}
        return OwnersFound(number, known, others_found, erased_at)

    @contextlib.asynccontextmanager
    async def undone_if_refused(self) -> AsyncIterator[None]:
        """Forget what the body has written if it fails and is rolled back."""
        found = self.found
        try:
            yield
        except BaseException:
            self.found = found
            raise

    async def give(
        self, records: Sequence[HistoryRecord], owners: Mapping[str, Owner]
    ) -> OwnersPlan:
        """Write the new owners of memories, and return how to add the records.

        Raises:
            asyncpg.PostgresError: others have changed owners meanwhile.
            OwnersUnlocked: begin again, with `lock`.
            StorageError: the role lacks the privileges.
        """
        if owners and (not self.found.number or any(map(self.found.has, owners))):
            await self._give_late(owners)
        found = self.found
        names: dict[str, Owner | None] = dict.fromkeys([record.memory_id for record in records])
        whose: dict[str, Owner | None] = names
        if found.rows or found.others or owners:
            whose = {name: found.owner(name) or owners.get(name) for name in names}
        new = {}
        if found.number:
            new = {name: owner for name, owner in whose.items() if name not in found.rows}
        self.found = replace(found, rows={**found.rows, **new}, others={**found.others, **whose})
        return OwnersPlan(found.number, whose, new)

    async def _give_late(self, owners: Mapping[str, Owner]) -> None:
        """Give owners to memories that may have records."""
        if not self._is_read_committed:
            raise StorageRefused(
                "this is the first owner of a memory that has records, or of the whole history: "
                "give it in a READ COMMITTED transaction, or without one"
            )
        if not (self._is_locked or self._may_lock_late):
            raise OwnersUnlocked
        try:
            if not self._is_locked:
                await self._lock()
            await self._require_same(list(owners))
            numbers = await self._fetch(_NUMBER_AFTER, self.found.number)
            if not numbers:
                await self.require_unchanged()  # an erasure needs no lock
                raise asyncpg.InsufficientPrivilegeError("a policy hides owners_state")
            await self._execute(REPLACE_OWNERS, *owner_rows(owners))
            of_owner: dict[Owner, list[str]] = {}
            for name, owner in owners.items():
                if self.found.has(name):
                    of_owner.setdefault(owner, []).append(name)
            for owner, names in of_owner.items():
                await self._execute(_FILL, names, *scopes_of(owner))
                if await self._fetch(_NOT_FILLED, names, *scopes_of(owner)):
                    raise StorageRefused(
                        "a trigger, rule or policy of the table history keeps records without the "
                        "owner of their memory; let this role change them"
                    )
        except asyncpg.InsufficientPrivilegeError as error:
            raise storage_error(error, self._where) from error
        found = self.found
        self.found = replace(found, number=int(numbers[0][0]), rows={**found.rows, **owners})

    async def lock(self) -> None:
        """Exclude all other transactions that write records, before anything is looked up.

        Others that call this wait until the transaction ends.

        Raises:
            asyncpg.PostgresError: both tables were in use, or the role may not lock them.
        """
        await self._execute(_TAKE_TURN, self._schema)
        await self._lock()
        self._is_locked = True

    async def _lock(self) -> None:
        ((wait,),) = await self._fetch(_WAIT)
        await self._execute(_SET_WAIT, _SHORT_WAIT)
        first, second = _LOCKS
        try:
            async with savepoint(self._connection, checks_constraints=False):
                await self._execute(first)
        except asyncpg.LockNotAvailableError:
            await self._execute(second)
        await self._execute(_SET_WAIT, wait)

    async def _require_same(self, names: Sequence[str]) -> None:
        """Check, with the table locked, that what was found before is unchanged.

        Raises:
            asyncpg.SerializationError: it has changed.
        """
        found = await self._find(names, gives_owners=True)
        before = self.found.of(names)
        if found != before:
            raise _changed()

    async def require_unchanged(self) -> None:
        """Check that no rows were left out because owners or erased names have changed.

        Raises:
            asyncpg.SerializationError: they were changed meanwhile.
        """
        number, _ = await self._state(_STATE)
        if number != self.found.number:
            raise _changed()
