"""A statement that was made before its batch is used for exactly these records."""

import asyncio
import gc
from collections.abc import Callable, Sequence
from functools import partial
from threading import Lock
from typing import Any

import pytest

from async_history import open_history
from async_history._core.records.new_records import new_fields
from async_history._core.writing.new_submissions import new_text
from async_history._core.writing.submissions import AddFields, Submission
from async_history._core.writing.writer import GroupCommitWriter
from async_history._postgres.keys import InClear
from async_history._postgres.ledger import Attestation
from async_history._postgres.writing.add import Statement, plain
from async_history._postgres.writing.owners import KnownOwners
from async_history._postgres.writing.plain_statements import PlainStatements
from tests.support.keys import ring
from tests.support.patience import LONG_S
from tests.support.postgres_batches import commit_on
from tests.support.postgres_gate import shut
from tests.support.postgres_schemas import schema_of


def waiting(*names: str) -> list[AddFields]:
    return [AddFields(new_fields(name, None, "tea", "ADD")) for name in names]


def test_the_next_batch_takes_the_statement_once() -> None:
    statements, submissions = PlainStatements(), waiting("a", "b")
    made = plain([one.fields for one in submissions], ())
    statements.begin(submissions)
    assert statements.take(submissions.copy()) == made
    assert statements.take(submissions) is None
    statements.begin(submissions)
    batch = submissions.copy()
    submissions.clear()
    assert statements.take(batch) == made, "the queue's list may change"


def test_another_batch_does_not_get_it() -> None:
    statements, submissions = PlainStatements(), waiting("a", "b", "c")
    alike = [AddFields(one.fields) for one in submissions]
    for other in (submissions[:2], submissions[1:], submissions[::-1], alike):
        statements.begin(submissions)
        assert statements.take(other) is None
        assert statements.take(submissions) is None, "it outlives the next batch"


SEPARATOR = "\x1f"
"""Before each of a column's values, if there are several: see `joined_texts`."""


class Connection:
    """A connection that keeps what is executed; every SELECT finds nothing.

    An INSERT adds as many records as its first argument has.
    """

    def __init__(self) -> None:
        self.executed: list[tuple[object, ...]] = []

    async def execute(self, *statement: object) -> str:
        self.executed.append(statement)
        sql, *arguments = statement
        if "WITH" in str(sql) or not arguments:
            return "SELECT 1"
        ids = str(arguments[0])
        return f"INSERT 0 {ids.count(SEPARATOR) or 1}"

    async def fetch(self, sql: str, *_: object) -> list[tuple[object, ...]]:
        return [(0, None, None, None)] if "owners_state" in sql else []


class Made(PlainStatements):
    """One statement for any batch."""

    sql = "SELECT made"

    def take(self, batch: Sequence[object]) -> Statement | None:
        return self.sql, ()


async def test_the_batch_is_written_by_the_statement_that_was_made_for_it() -> None:
    connection = Connection()
    assert await commit_on(connection, "a", waiting("a", "b"), plain=Made()) == {}
    assert connection.executed == [(Made.sql,)]


@pytest.mark.parametrize("needs", ["settings", "owners", "leaves"])
async def test_it_is_not_used_if_the_batch_needs_more(needs: str) -> None:
    connection, known = Connection(), KnownOwners()
    if needs == "owners":
        known.learn(1, {"a": None, "b": None}, None)
    refused = await commit_on(
        connection,
        "a",
        waiting("a", "b"),
        plain=Made(),
        known=known,
        settings=("SET LOCAL lock_timeout TO 1",) if needs == "settings" else (),
        attestation=Attestation('"a"', InClear(), Lock()) if needs == "leaves" else None,
    )
    assert refused == {}
    executed = [str(sql) for sql, *_ in connection.executed]
    assert Made.sql not in executed
    assert any("INSERT INTO" in sql for sql in executed)


@pytest.mark.parametrize(
    "next_batch",
    [
        pytest.param(
            AddFields(new_fields("c", None, "tea", "ADD", context={"by": "hand"})), id="details"
        ),
        pytest.param(new_text("c", "tea", actor_id=None, role=None, context=None), id="in steps"),
    ],
)
async def test_no_text_outlives_the_next_batch(next_batch: Submission) -> None:
    """A statement has its records' texts, also those that are erased later."""
    statements = PlainStatements()
    submissions = waiting("a", "b")
    statements.begin(submissions)
    assert await commit_on(Connection(), "a", [next_batch], plain=statements) == {}
    assert statements.take(submissions) is None


def kept_by(part: object, text: str) -> bool:
    """Return whether an object of the library holds a text, itself or through others."""
    seen: set[int] = set()
    left = [part]
    while left:
        one = left.pop()
        if isinstance(one, str) and text in one:
            return True
        ours = type(one).__module__.startswith("async_history")
        if id(one) in seen or not (ours or isinstance(one, (dict, list, tuple))):
            continue
        seen.add(id(one))
        if not isinstance(one, GroupCommitWriter):  # its queue has the calls that wait
            left += gc.get_referents(one)
    return False


@pytest.mark.postgres
@pytest.mark.parametrize("options", [{}, {"keys": ring("one")}, {"ledger": True}])
async def test_nothing_made_from_calls_that_are_withdrawn_is_kept(
    new_schema: Callable[[], str], connect: Any, options: dict[str, Any]
) -> None:
    url, admin, text, many = new_schema(), await connect(), "a text in clear", 100

    async def record(number: int) -> None:
        role = "late" if number > many else None
        while True:
            await history.add_history(f"m{number}", None, text, "ADD", role=role)

    async with open_history(url, batch_records=many, **options) as history:
        store: Any = history.store
        async with shut(admin, schema_of(url)), asyncio.timeout(LONG_S):
            calls = [asyncio.ensure_future(record(number)) for number in range(3 * many)]
            while not kept_by(store, text):  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.001)
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)
        await store.writer.run_alone(partial(asyncio.sleep, 0))  # after those in a batch
        assert not kept_by(store, text)


@pytest.mark.postgres
async def test_calls_that_are_withdrawn_after_a_statement_was_made(
    new_schema: Callable[[], str],
) -> None:
    async with open_history(new_schema()) as history:
        written: list[str] = []

        async def record(number: int) -> None:
            for turn in range(6):
                call = asyncio.ensure_future(
                    history.add_history(f"m{number}", None, f"{turn}", "ADD")
                )
                if (number + turn) % 5 == 0:
                    await asyncio.sleep(0)
                    call.cancel()
                try:
                    written.append((await call).id)
                except asyncio.CancelledError:
                    assert (number + turn) % 5 == 0

        await asyncio.gather(*map(record, range(300)))
        stored = [one.id async for one in history.query_history()]
        assert len(set(stored)) == len(stored)
        assert set(written) <= set(stored)
        assert len(written) == 300 * 6 * 4 // 5
