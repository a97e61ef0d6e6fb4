"""Pruning and erasing in PostgreSQL: the statements, and what only the server's owner can do.

Lives here: one step of either in its transaction, the erasures' table, VACUUM. Not here: what is
decided (_pruning, _erasing), whose turn it is (postgres).
"""

from collections.abc import Awaitable, Callable, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

from async_history.backends._erasing import Blanks, Found, Place, erase_step
from async_history.backends._postgres_pool import ConnectionPool
from async_history.backends._postgres_transaction import WAIT_FOR_REPLICAS_TOO, transaction
from async_history.backends._pruning import Seen, goes_alone, prune_step
from async_history.errors import StorageError
from async_history.migrations.postgres import in_schema
from async_history.retention import (
    EraseStep,
    Erasing,
    Erasure,
    PruneStep,
    Pruning,
    Reached,
    Reaching,
    Remains,
    actor_digest,
)
from async_history.writer import OutcomeUnknown, TryAgain

_ENDS: Final = "SELECT pg_catalog.min(seq), pg_catalog.max(seq) FROM {schema}.history"
_LIGHT: Final = """
seq, id, memory_id, event = 'DELETE', occurred_at < $1::pg_catalog.text::pg_catalog.timestamptz
"""
"""A record's place, whether it is a DELETE, and whether it is from before an instant: as text, for
an instant near year 1 or 9999 can be one that the driver can neither send nor take."""
_WINDOW: Final = f"""
SELECT {_LIGHT}, (
    SELECT occurred_at IS NOT NULL FROM {{schema}}.history AS following
    WHERE following.memory_id = seen.memory_id AND following.seq > seen.seq
    ORDER BY following.seq LIMIT 1
) AND EXISTS (
    SELECT FROM {{schema}}.history AS later
    WHERE later.memory_id = seen.memory_id AND later.seq > seen.seq
    ORDER BY later.seq OFFSET $5 LIMIT 1
)
FROM (
    SELECT seq, id, memory_id, event, occurred_at FROM {{schema}}.history
    WHERE seq > $2 AND seq <= $3 ORDER BY seq LIMIT $4
) AS seen
ORDER BY seq
"""  # noqa: S608 - constants
_WHOLE: Final = f"""
SELECT {_LIGHT} FROM {{schema}}.history
WHERE memory_id = ANY($2::pg_catalog.text[]) ORDER BY memory_id, seq
"""  # noqa: S608 - constants
_LATEST: Final = """
SELECT seq FROM {schema}.history AS seen
WHERE id = ANY($1::pg_catalog.text[]) AND memory_id = ANY($2::pg_catalog.text[]) AND NOT EXISTS (
    SELECT FROM {schema}.history AS later
    WHERE later.memory_id = seen.memory_id AND later.seq > seen.seq
)
"""
_REMOVE: Final = """
DELETE FROM {schema}.history
WHERE id = ANY($1::pg_catalog.text[]) AND memory_id = ANY($2::pg_catalog.text[])
"""

_WITH_TEXT: Final = """
SELECT seq, id, memory_id FROM {schema}.history
WHERE memory_id = $1 AND seq > $2 AND (old_memory IS NOT NULL OR new_memory IS NOT NULL)
ORDER BY seq LIMIT $3
"""
_OF_SEVERAL_WITH_TEXT: Final = """
SELECT seq, id, memory_id FROM {schema}.history
WHERE memory_id = ANY($1::pg_catalog.text[]) AND seq > $2
  AND (old_memory IS NOT NULL OR new_memory IS NOT NULL)
ORDER BY seq + 0 LIMIT $3
"""
"""Not in the order of the index on `seq`, which would be walked through from $2 on."""
_OF_ACTOR: Final = """
SELECT seq, id, memory_id FROM {schema}.history WHERE actor_id = $1 AND seq > $2
ORDER BY seq LIMIT $3
"""
_COPIES: Final = """
SELECT coalesce(pg_catalog.bool_or(copy.old_memory = own.new_memory), false),
       coalesce(pg_catalog.bool_or(copy.new_memory = own.new_memory), false),
       copy.seq, copy.id, copy.memory_id
FROM {schema}.history AS own JOIN {schema}.history AS copy ON copy.memory_id = own.memory_id
WHERE own.id = ANY($1::pg_catalog.text[]) AND own.memory_id = ANY($2::pg_catalog.text[])
  AND copy.actor_id IS DISTINCT FROM $3
  AND (copy.old_memory = own.new_memory OR copy.new_memory = own.new_memory)
GROUP BY copy.seq, copy.id, copy.memory_id
"""
_BLANK: Final = """
UPDATE {schema}.history SET
    old_memory = CASE WHEN id = ANY($1::pg_catalog.text[]) THEN NULL ELSE old_memory END,
    new_memory = CASE WHEN id = ANY($2::pg_catalog.text[]) THEN NULL ELSE new_memory END,
    actor_id = CASE WHEN id = ANY($3::pg_catalog.text[]) THEN NULL ELSE actor_id END
WHERE id = ANY($4::pg_catalog.text[]) AND memory_id = ANY($5::pg_catalog.text[])
"""
_COUNT_MESSAGES: Final = """
SELECT pg_catalog.count(*) FROM {schema}.messages WHERE session_scope = ANY($1::pg_catalog.text[])
"""
_REMOVE_MESSAGES: Final = (
    "DELETE FROM {schema}.messages WHERE session_scope = ANY($1::pg_catalog.text[])"
)
_BEGIN: Final = """
INSERT INTO {schema}.erasures (id, reason, memory_ids, actor_sha256)
VALUES ($1, $2, $3::pg_catalog.text[], $4) ON CONFLICT (id) DO NOTHING
"""
_NOTE: Final = """
UPDATE {schema}.erasures SET records = records + $1, messages = messages + $2 WHERE id = $3
"""
_FINISH: Final = "UPDATE {schema}.erasures SET finished_at = pg_catalog.now() WHERE id = $1"
ERASURES: Final = """
SELECT id, begun_at, finished_at, reason, memory_ids, actor_sha256, records, messages
FROM {schema}.erasures ORDER BY begun_at, id
"""
"""The erasures that the schema knows of, oldest first; for `erasure_from_row`."""

_OUT_OF_REACH: Final = (
    "the server's log (WAL), replicas until they have replayed it, and backups have the texts "
    "until they are recycled",
    "VACUUM leaves the bytes of removed row versions in the tables' files until they are used "
    "again; VACUUM FULL writes the files anew",
)


def erasure_from_row(row: Sequence[Any]) -> Erasure:
    """Return the erasure of a row of `ERASURES`."""
    erasure_id, begun_at, finished_at, reason, memory_ids, actor_sha256, records, messages = row
    return Erasure(
        erasure_id,
        begun_at,
        finished_at,
        reason,
        tuple(memory_ids),
        actor_sha256,
        records,
        messages,
    )


class _Steps:
    """What pruning's and erasing's steps share: a connection in a transaction, and the schema."""

    def __init__(self, connection: Any, schema: str) -> None:
        self._connection = connection
        self._schema = schema

    async def _fetch(self, sql: str, *arguments: Any) -> Sequence[Sequence[Any]]:
        return list(await self._connection.fetch(in_schema(sql, self._schema), *arguments))

    async def _execute(self, sql: str, *arguments: Any) -> str:
        return str(await self._connection.execute(in_schema(sql, self._schema), *arguments))


async def prune(connection: Any, schema: str, asked: Pruning, reached: Reached | None) -> PruneStep:
    """Prune the next few records in one transaction."""
    async with transaction(connection):
        step = await prune_step(asked, reached, _PruneSteps(connection, schema))
        await connection.execute(WAIT_FOR_REPLICAS_TOO)
        return step


class _PruneSteps(_Steps):
    """The steps of `prune_step`."""

    async def ends(self) -> tuple[int, int] | None:
        ((first, last),) = await self._fetch(_ENDS)
        return None if first is None else (first, last)

    async def window(self, asked: Pruning, after: int, last: int, limit: int) -> list[Seen]:
        before, enough = asked.before.isoformat(), max(asked.keep_last, 1) - 1
        return [
            Seen(*(*row, bool(row[-1] and is_followed)))
            for *row, is_followed in await self._fetch(_WINDOW, before, after, last, limit, enough)
        ]

    async def latest(self, records: Sequence[Seen]) -> set[int]:
        ids, memory_ids = [one.id for one in records], list({one.memory_id for one in records})
        return {seq for (seq,) in await self._fetch(_LATEST, ids, memory_ids)}

    async def whole(self, asked: Pruning, memory_ids: Sequence[str]) -> list[Seen]:
        seen: list[Seen] = []
        rows = await self._fetch(_WHOLE, asked.before.isoformat(), memory_ids)
        for _, group in groupby(rows, key=itemgetter(2)):
            of_memory = list(group)
            are_old = [row[-1] for row in of_memory]
            seen += [
                Seen(*(*row, goes_alone(asked, are_old, index)))
                for index, row in enumerate(of_memory)
            ]
        return seen

    async def remove(self, records: Sequence[Seen]) -> int:
        if not records:
            return 0
        status = await self._execute(
            _REMOVE, [one.id for one in records], list({one.memory_id for one in records})
        )
        return int(status.rpartition(" ")[2])


class _EraseSteps(_Steps):
    """The steps of `erase_step`."""

    async def with_text(self, memory_ids: Sequence[str], after: int, limit: int) -> Found:
        if len(memory_ids) == 1:
            return _found(await self._fetch(_WITH_TEXT, memory_ids[0], after, limit), limit)
        rows = await self._fetch(_OF_SEVERAL_WITH_TEXT, list(memory_ids), after, limit)
        return _found(rows, limit)

    async def of_actor(self, actor_id: str, after: int, limit: int) -> Found:
        return _found(await self._fetch(_OF_ACTOR, actor_id, after, limit), limit)

    async def copies(self, actor_id: str, places: Sequence[Place]) -> Blanks:
        rows = await self._fetch(_COPIES, _ids(places), _memory_ids(places), actor_id)
        return Blanks(
            [Place(*row) for is_old, _, *row in rows if is_old],
            [Place(*row) for _, is_new, *row in rows if is_new],
        )

    async def blank(self, blanks: Blanks) -> None:
        places = blanks.all()
        await self._execute(
            _BLANK,
            _ids(blanks.old_memory),
            _ids(blanks.new_memory),
            _ids(blanks.actor_id),
            _ids(places),
            _memory_ids(places),
        )

    async def messages(self, session_scopes: Sequence[str]) -> int:
        ((count,),) = await self._fetch(_COUNT_MESSAGES, list(session_scopes))
        return int(count)

    async def remove_messages(self, session_scopes: Sequence[str]) -> None:
        await self._execute(_REMOVE_MESSAGES, list(session_scopes))

    async def note(self, erasure_id: str, erased: EraseStep) -> None:
        await self._execute(_NOTE, erased.records, erased.messages, erasure_id)


def _found(rows: Sequence[Sequence[Any]], limit: int) -> Found:
    return Found([Place(*row) for row in rows], rows[-1][0] if len(rows) == limit else None)


def _ids(places: Sequence[Place]) -> list[str]:
    return [place.id for place in places]


def _memory_ids(places: Sequence[Place]) -> list[str]:
    return list({place.memory_id for place in places})


Work = Callable[[Any, ConnectionPool], Awaitable[Any]]


class ServerErasure:
    """The steps of `erase_in_steps`, on a server.

    Args:
        in_turn: does work on the connection that writes, alone, in its turn among the writes.
        beside: does work on another connection, which no transaction is open on.
        schema: the quoted schema.
    """

    def __init__(
        self,
        in_turn: Callable[[Work], Awaitable[Any]],
        beside: Callable[[Work], Awaitable[Any]],
        schema: str,
    ) -> None:
        self._in_turn = in_turn
        self._beside = beside
        self._schema = schema

    async def begin(self, asked: Erasing) -> None:
        await self._execute(
            _BEGIN, asked.id, asked.reason, list(asked.memory_ids), actor_digest(asked.actor_id)
        )

    async def finish(self, asked: Erasing) -> None:
        await self._execute(_FINISH, asked.id)

    async def _execute(self, sql: str, *arguments: Any) -> None:
        async def execute(connection: Any, _: ConnectionPool) -> None:
            async with transaction(connection):
                await connection.execute(in_schema(sql, self._schema), *arguments)

        await self._in_turn(execute)

    async def step(self, asked: Erasing, whose: Reaching) -> EraseStep:
        async def erase(connection: Any, _: ConnectionPool) -> EraseStep:
            async with transaction(connection):
                return await erase_step(asked, whose, _EraseSteps(connection, self._schema))

        erased: EraseStep = await self._in_turn(erase)
        return erased

    async def remains(self) -> Remains:
        return Remains(sentences=_OUT_OF_REACH)

    async def clean(self, *, vacuum: bool) -> Remains:
        refusals = await self._vacuumed() if vacuum else ["(vacuum=False)"]
        return Remains(
            sentences=(
                *(f"the tables were not vacuumed: {reason}" for reason in refusals),
                *_OUT_OF_REACH,
            )
        )

    async def _vacuumed(self) -> list[str]:
        """Vacuum the tables beside the writes; return why that was not done."""
        warnings: list[str] = []

        def hear(_: Any, message: Any) -> None:
            if message.severity_en == "WARNING":  # the table belongs to somebody else
                warnings.append(message.message)

        async def vacuum(connection: Any, _: ConnectionPool) -> None:
            connection.add_log_listener(hear)
            try:
                for table in ("history", "messages"):
                    await connection.execute(f"VACUUM {self._schema}.{table}")
            finally:
                connection.remove_log_listener(hear)

        try:
            await self._beside(vacuum)
        except (StorageError, OutcomeUnknown, TryAgain) as error:
            return [str(error)]
        return warnings
