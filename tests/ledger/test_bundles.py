"""Changes at the bounds of bundles, whose leaves verification compares all at once."""

from pathlib import Path
from typing import Any

import pytest

from async_history import open_history
from async_history._core.ledger.leaves import OWNER, RECORD, values_bundle
from async_history._core.records.records import COLUMNS
from async_history.ledger import Checkpoint
from tests.ledger.ledgers import KEY, change, verified, what_is_found

pytestmark = pytest.mark.once

_A_BUNDLE = 512
_BOUNDS = (0, _A_BUNDLE - 1, _A_BUNDLE, _A_BUNDLE + 87)
"""The first and the last record of both bundles."""
_DETAILS = ("context", "cause")

Store = tuple[Path, Checkpoint]


@pytest.fixture
async def store(tmp_path: Path) -> Store:
    """Two bundles of records, whose columns all have texts."""
    path = tmp_path / "history.db"
    async with open_history(path, ledger=True, journal="delete") as history:
        await history.batch_add_history(
            [
                {
                    "id": f"{number:03}",
                    "memory_id": f"m{number % 7}",
                    "old_memory": f"likes tea {number}",
                    "new_memory": f"likes milk {number}",
                    "event": "UPDATE",
                    "created_at": "2026-01-01T00:00:00+00:00",
                    "updated_at": "2026-01-02T00:00:00+00:00",
                    "actor_id": "bo",
                    "role": "user",
                    "context": {"n": number},
                    "cause": {"why": f"{number}"},
                }
                for number in range(_A_BUNDLE + 88)
            ]
        )
        return path, await history.ledger.checkpoint(KEY)


async def test_one_changed_byte_of_a_column_is_found_and_nothing_else(store: Store) -> None:
    path, checkpoint = store
    whole = path.read_bytes()
    ids = [f"{number:03}" for number in _BOUNDS]
    named = ", ".join(f"'{each}'" for each in ids)
    tables = dict.fromkeys(COLUMNS[1:], "history")
    tables |= dict.fromkeys(_DETAILS, "async_history_details")
    for column, table in tables.items():
        path.write_bytes(whole)
        byte = f"substr({column}, 1, length({column}) - 1) || '~'"
        other = f"1 - {column}" if column == "is_deleted" else byte
        change(path, f"UPDATE {table} SET {column} = {other} WHERE id IN ({named})")
        report = await verified(path, checkpoint)
        assert what_is_found(report) == {("changed", each) for each in ids}, column
        assert report.records == _A_BUNDLE + 88 - len(ids)


@pytest.mark.parametrize(("one", "other"), [(0, 1), (_BOUNDS[1], _BOUNDS[2]), (0, _BOUNDS[3])])
async def test_two_records_with_each_others_values_are_found(
    store: Store, one: int, other: int
) -> None:
    path, checkpoint = store
    columns = ", ".join(COLUMNS[1:])
    change(
        path,
        f"CREATE TABLE kept AS SELECT * FROM history WHERE id IN ('{one:03}', '{other:03}')",
        f"UPDATE history SET ({columns}) = (SELECT {columns} FROM kept WHERE id <> history.id)"
        " WHERE id IN (SELECT id FROM kept)",
        "DROP TABLE kept",
    )
    found = what_is_found(await verified(path, checkpoint))
    assert found == {("changed", f"{one:03}"), ("changed", f"{other:03}")}


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "[]",
        "3",
        '"ann"',
        '{"user_id":5}',
        '{"user_id":["ann"]}',
        '{"user_id":"\\ud800"}',
        '{"user_id":"ann"',
        '{"user_id":"ann"},{"user_id":"bob"}',
        '{"user_id":"ann"} ',
        "[" * 100_000,
    ],
)
async def test_a_text_that_is_not_an_owners_is_found(tmp_path: Path, text: str) -> None:
    path = tmp_path / "history.db"
    async with open_history(path, ledger=True, journal="delete") as history:
        for name in ("ann", "bob", "cy"):
            await history.add_history(name, None, "tea", "ADD", owner={"user_id": name})
        checkpoint = await history.ledger.checkpoint(KEY)
    change(path, f"UPDATE async_history_owners SET owner = '{text}' WHERE memory_id = 'ann'")
    report = await verified(path, checkpoint)
    assert [(one.kind, one.memory_id) for one in report.faults] == [("changed", "ann")]
    assert (report.records, report.owners) == (3, 2)


async def test_an_owner_without_a_scope_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    async with open_history(path, ledger=True, journal="delete") as history:
        await history.add_history("ann", None, "tea", "ADD", owner={"user_id": "ann"})
    for text in ("{}", '{"user_id":null}', '{"x":"ann"}'):
        change(path, f"UPDATE async_history_owners SET owner = '{text}'")
        report = await verified(path)
        assert [(one.kind, one.memory_id) for one in report.faults] == [("lost", "ann")]


@pytest.mark.parametrize("key", [None, b"k" * 32])
@pytest.mark.parametrize("kind", [RECORD, OWNER])
def test_a_bundle_holds_only_its_rows(kind: str, key: bytes | None) -> None:
    rows: list[list[Any]] = [
        [f"{n}", "m", None, 'say "x"\n', "ADD", "t", None, 0, "é", "user", None, "{}"]
        if kind == RECORD
        else [f"{n}", "ann", None, None, None]
        for n in range(5)
    ]
    bundle = values_bundle(kind, [row[0] for row in rows], rows, key if kind == RECORD else None)
    assert bundle.holds(rows, key)
    assert not bundle.holds([rows[1], rows[0], *rows[2:]], key)
    for at in range(5 * 48):
        flipped = bundle.hashes[:at] + bytes([bundle.hashes[at] ^ 1]) + bundle.hashes[at + 1 :]
        assert not bundle._replace(hashes=flipped).holds(rows, key), at
    for at in range(0, 5 * 48, 48):
        erased = bundle.hashes[:at] + bytes(16) + bundle.hashes[at + 16 :]
        assert not bundle._replace(hashes=erased).holds(rows, key), at
    with pytest.raises(ValueError, match="zip"):
        bundle.holds(rows[:-1], key)
