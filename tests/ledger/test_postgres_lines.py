"""Lines of leaves that PostgreSQL makes: they are those that are made here, or are not used."""

from contextlib import aclosing
from typing import Any

import pytest

from async_history._core.ledger.removals import Removals
from async_history._core.ledger.seen import WholeBundle, seen_bundles
from async_history._core.ledger.stored import Counts
from async_history._postgres.ledger_sql import STATEMENTS
from tests.ledger.ledgers import KEY, OWNER, opened, store_ledger, what_is_found

pytestmark = [pytest.mark.postgres, pytest.mark.once]

_CHARACTERS = "".join(map(chr, (*range(1, 0x300), 0x2028, 0xD7FF, 0xE000, 0xFFFF, 0x1F375)))
_TEXTS = (_CHARACTERS, "", "null", '",\n "', "]\n0\n[", "\\", '\\"', "é" * 900)


async def read(history: Any) -> tuple[list[bool], list[str]]:
    """Return for each bundle whether it was compared at once, and the statements."""
    asked: list[str] = []

    async def seen(tables: Any) -> list[bool]:
        run = tables._run

        def noted(sql: str, *given: Any) -> Any:
            asked.append(sql)
            return run(sql, *given)

        tables._run = noted
        bundles = await tables.bundles(0)
        pages = seen_bundles(bundles, Removals(), Counts(0, 0, 0, 0, 0), tables)
        async with aclosing(pages):
            return [isinstance(page, WholeBundle) async for _, page in pages]

    return await store_ledger(history).read(seen), asked


async def test_the_lines_of_all_texts_are_those_of_the_leaves(url: str) -> None:
    async with opened(url) as history:
        for number, text in enumerate(_TEXTS):
            await history.add_history(
                text or "m",
                text,
                None if number % 2 else text,
                "ADD" if number % 2 else "UPDATE",
                id=f"{number}{text}",
                actor_id=text or None,
                role=text or None,
                context={text: text},
                cause={"why": text} if number % 3 else None,
                is_deleted=number % 2,
            )
        await history.ledger.checkpoint(KEY)
        whole, asked = await read(history)
    assert whole == [True] * len(_TEXTS)
    assert STATEMENTS.lines in asked
    assert STATEMENTS.records not in asked


async def test_a_text_that_is_the_json_of_the_recorded_one_is_found(url: str, owner: Any) -> None:
    async with opened(url) as history:
        await history.add_history("m", None, 'likes "tea"', "ADD", id="quoted")
        await history.add_history("m", None, "likes\nmilk", "ADD", id="broken")
        await history.ledger.checkpoint(KEY)
        for recorded, stored in (('"', '\\"'), ("\n", "\\n")):
            await owner.execute(
                "UPDATE history SET new_memory = replace(new_memory, $1, $2)", recorded, stored
            )
        assert what_is_found(await history.ledger.verify()) == {
            ("changed", "quoted"),
            ("changed", "broken"),
        }


async def test_a_column_that_became_json_is_found(url: str, owner: Any) -> None:
    """Its values are the lines of the texts that they were, and readers see those lines."""
    async with opened(url) as history:
        await history.add_history("m", None, 'likes "tea"', "ADD", id="quoted")
        await history.ledger.checkpoint(KEY)
        await owner.execute(
            "ALTER TABLE history ALTER new_memory TYPE json USING to_json(new_memory)"
        )
        assert what_is_found(await history.ledger.verify()) == {("changed", "quoted")}


async def test_records_that_are_far_from_each_other_are_read_by_their_ids(
    url: str, owner: Any
) -> None:
    async with opened(url) as history:
        await history.add_history("m", None, "likes tea", "ADD", id="first", owner=OWNER)
        await owner.execute(
            "INSERT INTO history (id, memory_id, event, is_deleted)"
            " SELECT 'x' || number, 'x', 'ADD', false FROM generate_series(1, 30) AS number"
        )
        await history.add_history("m", "likes tea", "likes milk", "UPDATE", id="last")
        checkpoint = await history.ledger.checkpoint(KEY)
        whole, asked = await read(history)
        report = await history.ledger.verify(checkpoint)
    assert whole == [True] * 3
    assert asked.count(STATEMENTS.records) == 1
    assert report.is_intact
    assert report.records == 2
    assert len(report.unattested) == 30


async def test_records_of_others_in_between_do_not_matter(url: str, owner: Any) -> None:
    async with opened(url) as history:
        await history.add_history("m", None, "likes tea", "ADD")
        await owner.execute(
            "INSERT INTO history (id, memory_id, event, is_deleted) VALUES ('x', 'x', 'ADD', false)"
        )
        await history.add_history("m", "likes tea", "likes milk", "UPDATE")
        await history.ledger.checkpoint(KEY)
        whole, asked = await read(history)
    assert whole == [True] * 2
    assert STATEMENTS.records not in asked


@pytest.mark.parametrize("gone", ["0", "2", "4"])
async def test_a_missing_record_is_found_wherever_it_was(url: str, owner: Any, gone: str) -> None:
    async with opened(url) as history:
        await history.batch_add_history(
            [{"id": str(n), "memory_id": "m", "new_memory": "x", "event": "ADD"} for n in range(5)]
        )
        await history.ledger.checkpoint(KEY)
        await owner.execute("DELETE FROM history WHERE id = $1", gone)
        report = await history.ledger.verify()
    assert what_is_found(report) == {("lost", gone)}
    assert report.records == 4


async def test_one_missing_record_ends_the_reading_of_lines_for_a_while(
    url: str, owner: Any
) -> None:
    """Lines of far records are read in vain, so most groups are asked only once."""
    async with opened(url) as history:
        for batch in range(8):
            await history.batch_add_history(
                [{"memory_id": f"{batch}", "new_memory": "x", "event": "ADD"} for _ in range(300)]
            )
        await history.ledger.checkpoint(KEY)
        await owner.execute("DELETE FROM history WHERE seq = (SELECT min(seq) FROM history)")
        whole, asked = await read(history)
    assert whole == [False] + [True] * 7
    assert asked.count(STATEMENTS.lines) == 3
