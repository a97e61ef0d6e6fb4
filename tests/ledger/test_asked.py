"""Statements that are sent ahead: in order, one at a time, and a bounded number."""

import asyncio
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from async_history._core.concurrency.threads import computed_with_calls
from async_history._core.ledger.asked import ask_ahead

pytestmark = pytest.mark.once


class Server:
    """A connection that refuses a statement while it runs another."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.is_busy = False

    async def fetch(self, statement: str, given: str) -> list[Any]:
        assert not self.is_busy
        self.is_busy = True
        self.asked.append(given)
        await asyncio.sleep(0.001)
        self.is_busy = False
        return [(statement, given)]


Run = Callable[[str, str], Awaitable[list[Any]]]
STATEMENTS = [(f"SELECT {number % 2}", str(number)) for number in range(9)]


async def test_answers_come_in_order_and_few_are_kept() -> None:
    server = Server()

    async def work(run: Run) -> list[Any]:
        rows: list[Any] = []
        for number, asked in enumerate(ask_ahead(run, iter(STATEMENTS))):
            rows += await asked
            assert len(server.asked) <= number + 3
        return rows

    rows = await computed_with_calls(server.fetch, work)
    assert rows == STATEMENTS


async def test_the_next_statement_is_sent_while_an_answer_is_processed() -> None:
    server = Server()

    async def work(run: Run) -> None:
        answers = ask_ahead(run, STATEMENTS)
        await next(answers)
        while len(server.asked) < 3:
            """The event loop runs meanwhile."""

    await computed_with_calls(server.fetch, work)


async def test_no_statement_runs_once_the_work_has_failed() -> None:
    server = Server()

    async def work(run: Run) -> None:
        for asked in ask_ahead(run, STATEMENTS):
            await asked
            raise ValueError("what is read can't be used")

    with pytest.raises(ValueError, match="can't be used"):
        await computed_with_calls(server.fetch, work)
    assert not server.is_busy
    assert len(server.asked) == 3


def test_statements_that_have_not_begun_are_closed() -> None:
    """As from a database that answers at once when it is awaited."""

    async def run(statement: str, given: str) -> list[Any]:
        return [given]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answers = ask_ahead(run, STATEMENTS)
        first: Any = next(answers)
        first.close()
        answers.close()
