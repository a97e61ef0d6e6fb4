"""A statement that was made before its batch is used for exactly these records."""

import asyncio
import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from async_history import open_history
from async_history._core.ledger.leaves import record_bundle
from async_history._core.records.new_records import new_fields
from async_history._core.writing.new_submissions import new_text
from async_history._core.writing.submissions import AddFields, Submission
from async_history._core.writing.writer import GroupCommitWriter
from async_history._postgres.keys import InClear
from async_history._postgres.writing.add import plain
from async_history._postgres.writing.commit import BatchCommitter
from async_history._postgres.writing.owners import KnownOwners
from async_history._postgres.writing.plain_statements import PlainStatements, plain_statement
from tests.support.keys import ring
from tests.support.patience import LONG_S
from tests.support.postgres_gate import shut
from tests.support.postgres_schemas import schema_of


def waiting(*names: str) -> list[AddFields]:
    return [AddFields(new_fields(name, None, "tea", "ADD")) for name in names]


def test_the_next_batch_takes_the_statement_once() -> None:
    statements, submissions = PlainStatements(), waiting("a", "b")
    fields = [one.fields for one in submissions]
    statements.begin(submissions)
    first, again = statements.take(), statements.take()
    assert first == (fields, plain(fields, ()))
    assert again is None
    assert plain_statement(first, fields, ()) is first[1]
    statements.begin(submissions)
    submissions.clear()
    assert statements.take() == first, "the queue's list may change"


def test_another_batch_gets_its_own_statement() -> None:
    statements, submissions = PlainStatements(), waiting("a", "b", "c")
    fields = [one.fields for one in submissions]
    for other in (
        fields[:2],
        fields[1:],
        fields[::-1],
        [one.fields for one in waiting("a", "b", "c")],
    ):
        statements.begin(submissions)
        assert plain_statement(statements.take(), other, ()) == plain(other, ())
    leaves = [record_bundle([one[0] for one in fields], fields, None)]
    statements.begin(submissions)
    assert plain_statement(statements.take(), fields, leaves) == plain(fields, leaves)


class Connection:
    """A connection on which every INSERT adds one record, and every SELECT finds nothing."""

    async def execute(self, sql: str, *_: object) -> str:
        return "INSERT 0 1"

    async def fetch(self, sql: str, *_: object) -> list[tuple[object, ...]]:
        return [(0, None, None, None)] if "owners_state" in sql else []


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
    committer = BatchCommitter(
        Connection(),
        '"a"',
        is_distributed=False,
        known=KnownOwners(),
        plain=statements,
        seal=InClear(),
        where="here",
        sent=lambda: None,
    )
    statements.begin(waiting("a", "b"))
    assert await committer.commit([next_batch]) == {}
    assert statements.take() is None


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
