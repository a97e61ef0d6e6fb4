"""Followers in PostgreSQL, compared with a scan of the table: random transactions of every kind."""

import random
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import asyncpg
import pytest

from async_history import open_history
from async_history._postgres.reading.cursors import FollowPosition, position_from_cursor
from async_history._postgres.reading.follow import FollowReader
from async_history._postgres.schema import quoted
from tests.support.postgres_server import PostgresServer, are_installed, with_query

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.once,
    pytest.mark.skipif(not are_installed(), reason="needs prepared transactions"),
]

_STEPS: Final = 250
_INSERT: Final = """
INSERT INTO {schema}.history (id, memory_id, new_memory, event, is_deleted)
SELECT gen_random_uuid()::text, $1, text, 'UPDATE', false FROM unnest($2::text[]) AS text
"""
_INSERT_AT: Final = """
INSERT INTO {schema}.history (seq, id, memory_id, new_memory, event, is_deleted)
OVERRIDING SYSTEM VALUE VALUES ($1, gen_random_uuid()::text, $2, $3, 'UPDATE', false)
"""
_TAKE_NUMBER: Final = "SELECT pg_current_xact_id()"
_NEXT: Final = "SELECT nextval(pg_get_serial_sequence('{schema}.history', 'seq'))"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    server = PostgresServer(fsync="off", max_prepared_transactions="20").create()
    yield server.start()
    server.remove()


@pytest.fixture
async def connections(server: PostgresServer) -> AsyncIterator[list[Any]]:
    connections = [await asyncpg.connect(server.url()) for _ in range(5)]
    yield connections
    for connection in connections:
        connection.terminate()


class Clock:
    """The steps of the test at which texts were written and acked."""

    def __init__(self) -> None:
        self.now = 0
        self.written: dict[str, int] = {}
        self.acked: dict[str, int] = {}
        self.memories: dict[str, str] = {}

    def begin(self, rng: random.Random, count: int) -> tuple[str, list[str]]:
        """Return a memory and texts to write."""
        memory_id = rng.choice("mn")
        texts = [f"{self.now}.{n}" for n in range(count)]
        self.written |= dict.fromkeys(texts, self.now)
        self.memories |= dict.fromkeys(texts, memory_id)
        return memory_id, texts

    def commit(self, texts: list[str]) -> None:
        self.acked |= dict.fromkeys(texts, self.now)


class Writer:
    """Another connection that writes by SQL, in transactions with savepoints.

    Args:
        takes_number_first: whether the tables ensure that a row with a `seq` has a number.
    """

    def __init__(
        self,
        connection: Any,
        schema: str,
        rng: random.Random,
        clock: Clock,
        *,
        takes_number_first: bool,
    ) -> None:
        self._connection = connection
        self._schema = schema
        self._rng = rng
        self._clock = clock
        self._takes_number_first = takes_number_first
        self._is_open = False
        self._texts: list[str] = []
        self._before_savepoint: int | None = None
        self._prepared: list[tuple[str, list[str]]] = []
        self._held: list[tuple[int, str, str]] = []

    async def step(self) -> None:
        """Do one of the possible steps."""
        match self._rng.choice(["write", "write", "write", "begin", "end", "hold", "prepared"]):
            case "begin" if not self._is_open:
                await self._connection.execute("BEGIN")
                self._is_open = True
                if self._rng.random() < 0.5:
                    await self._connection.fetchval(_TAKE_NUMBER)
            case "begin" if self._before_savepoint is None:
                await self._connection.execute("SAVEPOINT here")
                self._before_savepoint = len(self._texts)
            case "begin":
                undo = self._rng.random() < 0.5
                await self._connection.execute(f"{'ROLLBACK TO' if undo else 'RELEASE'} here")
                if undo:
                    await self._connection.execute("RELEASE here")
                    del self._texts[self._before_savepoint :]
                self._before_savepoint = None
            case "end" if self._is_open:
                await self.end(self._rng.choice(["COMMIT", "COMMIT", "ROLLBACK", "PREPARE"]))
            case "hold" if self._is_open or not self._takes_number_first:
                # As a statement that has its `seq`, and waits before it writes its row.
                if self._takes_number_first:
                    await self._connection.fetchval(_TAKE_NUMBER)
                memory_id, (text,) = self._clock.begin(self._rng, 1)
                seq = await self._connection.fetchval(_NEXT.format(schema=self._schema))
                self._held.append((seq, memory_id, text))
            case "prepared" if self._prepared and not self._is_open:
                name, texts = self._prepared.pop(self._rng.randrange(len(self._prepared)))
                if self._rng.random() < 0.7:
                    await self._connection.execute(f"COMMIT PREPARED '{name}'")
                    self._clock.commit(texts)
                else:
                    await self._connection.execute(f"ROLLBACK PREPARED '{name}'")
            case _:
                await self._write()

    async def _write(self) -> None:
        if self._held and self._rng.random() < 0.5:
            seq, memory_id, text = self._held.pop()
            texts = [text]
            sql = _INSERT_AT.format(schema=self._schema)
            await self._connection.execute(sql, seq, memory_id, text)
        else:
            count = self._rng.choice([1, 1, 2, 3, 12, 25])
            memory_id, texts = self._clock.begin(self._rng, count)
            sql = _INSERT.format(schema=self._schema)
            await self._connection.execute(sql, memory_id, texts)
        if self._is_open:
            self._texts += texts
        else:
            self._clock.commit(texts)

    async def end(self, how: str) -> None:
        if not self._is_open:
            return
        texts, self._texts = self._texts, []
        self._is_open, self._before_savepoint = False, None
        if self._takes_number_first:
            self._held.clear()
        if how == "PREPARE":
            name = f"{self._schema.strip(chr(34))} {id(self)} {self._clock.now}"
            await self._connection.execute(f"PREPARE TRANSACTION '{name}'")
            self._prepared.append((name, texts))
            return
        await self._connection.execute(how)
        if how == "COMMIT":
            self._clock.commit(texts)

    async def give_up(self) -> None:
        """Roll back every open transaction."""
        await self.end("ROLLBACK")
        for name, _ in self._prepared:
            await self._connection.execute(f"ROLLBACK PREPARED '{name}'")


class Walker:
    """A follower that reads a page now and then, and keeps only its cursor."""

    def __init__(self, reader: FollowReader, memory_id: str | None, limit: int) -> None:
        self._reader = reader
        self._memory_id = memory_id
        self._limit = limit
        self._cursor: str | None = None
        self._yielded: list[str] = []

    async def step(self, rng: random.Random) -> bool:
        """Read a page and take some or all of it; return whether it was the last."""
        place: FollowPosition | None = (
            None if self._cursor is None else position_from_cursor(self._cursor)
        )
        read = await self._reader.page(place, self._memory_id, self._limit)
        taken = indexes = read.indexes_of(self._memory_id)
        if indexes and rng.random() < 0.3:
            taken = indexes[: rng.randint(1, len(indexes))]
        self._yielded += [str(read.records[index].new_memory) for index in taken]
        next_ = read.end if len(taken) == len(indexes) else read.position_after(taken[-1])
        self._cursor = None if next_ is None else str(next_)
        return read.is_last and len(taken) == len(indexes)

    def check(self, clock: Clock, stored: set[str]) -> None:
        """Check that every record came once, and after the records acked before its call."""
        if self._memory_id is not None:
            stored = {text for text in stored if clock.memories[text] == self._memory_id}
        assert len(self._yielded) == len(set(self._yielded)), "twice"
        assert set(self._yielded) == stored
        first_ack = clock.now + 1
        for text in reversed(self._yielded):
            assert clock.written[text] <= first_ack, (
                f"{text} came before a record that was acked before its call"
            )
            first_ack = min(first_ack, clock.acked[text])


@pytest.mark.parametrize("takes_number_first", [True, False])
@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(more, marks=pytest.mark.nightly) for more in range(2, 6))]
)
async def test_every_record_once_and_in_order(
    server: PostgresServer, connections: list[Any], seed: int, takes_number_first: bool
) -> None:
    """Windows of any size: less than a page, many pages, with transactions larger than a read."""
    rng, clock = random.Random(seed), Clock()  # noqa: S311 - a test's random choices
    name = f"chance{seed}{takes_number_first}"
    schema = quoted(name)
    async with open_history(with_query(server.url(), schema=name)):
        if not takes_number_first:
            trigger = "TRIGGER history_xact_before_seq"
            await connections[4].execute(f"ALTER TABLE {schema}.history DISABLE {trigger}")
        writers = [
            Writer(one, schema, rng, clock, takes_number_first=takes_number_first)
            for one in connections[:4]
        ]
        walkers = [
            Walker(
                FollowReader(
                    connections[4].fetch,
                    schema,
                    where="it",
                    is_distributed=False,
                    rows_at_once=rows_at_once,
                ),
                memory_id,
                limit,
            )
            for rows_at_once, memory_id, limit in (
                (2, None, 8),
                (10, None, 5),
                (1_000, None, 20),
                (4, "m", 6),
            )
        ]
        for clock.now in range(_STEPS):
            await rng.choice(writers).step()
            if rng.random() < 0.4:
                await rng.choice(walkers).step(rng)
        for writer in writers:
            await writer.give_up()
        rows = await connections[4].fetch(f"SELECT new_memory FROM {schema}.history")
        stored = {row[0] for row in rows}
        assert stored == set(clock.acked)
        for walker in walkers:
            while not await walker.step(rng):
                pass
            walker.check(clock, stored)
