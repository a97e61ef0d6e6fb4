"""A check of more memories than it keeps reads more often, and finds the same."""

import pytest

from async_history import open_history
from async_history._core.checking.check import CheckLimits
from tests.support.limits import limited

pytestmark = pytest.mark.once


async def test_more_memories_than_a_check_keeps() -> None:
    reads = 0
    async with limited(
        open_history("memory://"), check=CheckLimits(rows=7, memories=9, suspects=3, named=5)
    ) as history:
        for number in range(3):
            for memory in range(40):
                old = str(number - 1) if memory % 4 else "another"
                event = "UPDATE" if number else "ADD"
                await history.add_history(str(memory), old, str(number), event)
        read_rows = history.store.reader.rows

        async def rows(*arguments: object) -> object:
            nonlocal reads
            reads += 1
            return await read_rows(*arguments)  # type: ignore[arg-type]

        history.store.reader.rows = rows  # type: ignore[method-assign, assignment]
        report = await history.check()
    assert (report.records, report.memories, len(report.broken)) == (120, 40, 5)
    (note,) = report.notes
    assert note.startswith("20 records do not continue the text before them")
    assert reads >= 8 * 18, "40 memories, of which 9 are kept, are at least 8 parts"
