"""Values that other programs stored and that can't be read: `check` names each and goes on."""

import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from async_history import StorageCorrupt
from async_history.sql import SqlHistoryManager

pytestmark = pytest.mark.once

RECORD = "UPDATE async_history_records SET {} WHERE seq = 2"
STATE = "UPDATE async_history_state SET {}"
DEEP = '{"a":' * 5_000
NO_OBJECT = "The row with seq 2 of async_history_records is damaged: {} is not a JSON object"
NO_TEXT = "The row with seq 2 of async_history_records is damaged: {} is not a text"
NOT_UTF8 = "The row with seq 2 of async_history_records is damaged: a text is not UTF-8"
NO_NUMBER = "async_history_state.{} is not a number"

OF_ANY_DATABASE = {
    **{
        RECORD.format(f"{column} = '{value}'"): NO_OBJECT.format(column)
        for column in ("cause", "long_names")
        for value in ("{bad", "[1]", "7", "", DEEP)
    },
    RECORD.format("cause = '{\"run_id\":\"' || char(92) || 'ud800\"}'"): NO_OBJECT.format("cause"),
    RECORD.format("user_id = '', app_id = 'x'"): "an owner can't be read: user_id",
}
OF_SQLITE = {
    **{
        RECORD.format(f"{column} = x'ff'"): NO_TEXT.format(column)
        for column in ("id", "memory_id", "actor_id", "role", "user_id", "event", "created_at")
    },
    RECORD.format("cause = x'7b7d'"): NO_TEXT.format("cause"),
    RECORD.format("created_at = CAST(x'ff' AS TEXT)"): NOT_UTF8,
    **{
        RECORD.format(f"{column} = {value}"): f"{column} is not {what}"
        for column in ("old_memory", "new_memory", "context")
        for value, what in (("CAST(x'7bff' AS TEXT)", "UTF-8"), ("x'7b7d'", "a text"))
    },
    RECORD.format("is_deleted = 'x'"): "is_deleted is not a number",
    RECORD.format("occurred_at = x'ff'"): "occurred_at is not a number. UPDATE",
    "UPDATE async_history_erased SET at = x'ff'": "async_history_erased has 1 row",
    STATE.format("erased_at = x'ff'"): "does not know the last erasure",
}
MENDED = {
    RECORD.format("occurred_at = 'x'"): "occurred_at is not a number. UPDATE",
    RECORD.format("occurred_at = 1.5"): "occurred_at is not a number. UPDATE",
    RECORD.format("occurred_at = 'x', created_at = 'y'"): "SET occurred_at = NULL",
    "UPDATE async_history_spans SET events = 'x'": "The row 0 of async_history_spans",
    "UPDATE async_history_spans SET first_time = 'x'": "The row 0 of async_history_spans",
    "UPDATE async_history_spans SET last_time = 'x'": "The row 0 of async_history_spans",
    "UPDATE async_history_spans SET has_undated = 'x'": "The row 0 of async_history_spans",
    "UPDATE async_history_marks SET mark = 'x' || mark": "async_history_marks has 6 rows",
    "UPDATE async_history_marks SET seq = 'x' WHERE seq = 2": "async_history_marks has 3 rows",
    **{
        STATE.format(f"{column} = 'x'"): NO_NUMBER.format(f"{column}")
        for column in ("last", "last_message")
    },
    STATE.format("version = 'x'"): "version or last_version is not a number",
    STATE.format("last_version = 'x'"): "version or last_version is not a number",
    STATE.format("version = 'x', last_version = 'x'"): "version or last_version is not a number",
    STATE.format("erased_at = 'x'"): "does not know the last erasure",
    "UPDATE async_history_erased SET at = 'x'": "async_history_erased has 1 row",
}


@pytest.fixture
async def engine(tmp_path: Any) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'history.db'}")
    yield engine
    await engine.dispose()


@pytest.fixture
async def mariadb(request: pytest.FixtureRequest) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(request.getfixturevalue("new_database")())
    yield engine
    await engine.dispose()


async def fill(history: SqlHistoryManager) -> None:
    for name in ("ann", "bob"):
        await history.add_history(
            f"m {name}",
            None,
            "tea",
            "ADD",
            actor_id="actor",
            owner={"user_id": name},
            cause={"run_id": "r"},
        )
    await history.save_messages([{"role": "user", "content": "x"}], "scope")
    await history.erase(memory_ids=["erased"], reason="asked")


async def run(engine: AsyncEngine, *statements: str) -> None:
    async with engine.begin() as connection:
        for statement in statements:
            await connection.exec_driver_sql(statement)


async def require_named(history: SqlHistoryManager, what: str) -> None:
    """The damage and the missing index, which is checked last, are named, and nothing else."""
    *others, damage, index = (await history.check()).problems
    assert what in damage
    assert "async_history_records_memory is missing" in index
    assert all("not have their memory's owner" in one for one in others)


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        pytest.param(*one, id=one[0][len("UPDATE async_history_") :][:70])
        for one in (OF_ANY_DATABASE | OF_SQLITE).items()
    ],
)
async def test_a_damaged_value_is_named(engine: AsyncEngine, damage: str, what: str) -> None:
    async with SqlHistoryManager(engine=engine) as history:
        await fill(history)
        await run(engine, "DROP INDEX async_history_records_memory", damage)
        await require_named(history, what)


@pytest.mark.mariadb
async def test_damaged_values_are_named_on_mariadb(mariadb: AsyncEngine) -> None:
    async with SqlHistoryManager(engine=mariadb) as history:
        await fill(history)
        await run(mariadb, "DROP INDEX async_history_records_memory ON async_history_records")
        async with mariadb.connect() as connection:
            (kept,) = (
                await connection.execute(
                    text(
                        "SELECT id, actor_id, user_id, app_id, cause, long_names"
                        " FROM async_history_records WHERE seq = 2"
                    )
                )
            ).mappings()
        back = ", ".join(f"{name} = :{name}" for name in kept)
        damages = OF_ANY_DATABASE | {
            RECORD.format(f"{column} = x'ff'"): NOT_UTF8 for column in ("id", "actor_id", "user_id")
        }
        for damage, what in damages.items():
            await run(mariadb, damage.replace("' || char(92) || '", "\\\\"))
            await require_named(history, what)
            async with mariadb.begin() as connection:
                await connection.execute(text(RECORD.format(back)), dict(kept))


@pytest.mark.parametrize(
    ("damage", "what"),
    [pytest.param(*one, id=one[0].removeprefix("UPDATE async_history_")) for one in MENDED.items()],
)
async def test_what_is_said_mends_it(engine: AsyncEngine, damage: str, what: str) -> None:
    async with SqlHistoryManager(engine=engine) as history:
        await fill(history)
        await run(engine, damage)
        found = (await history.check()).problems
        assert any(what in one for one in found)
        for _ in range(20):
            if not found:
                break
            await run(engine, *statements_of(found[0]))
            found = (await history.check()).problems
        assert found == ()
        await history.add_history("m ann", "tea", "mate", "UPDATE")
        assert await history.count_history(user_id="ann") == 2


def statements_of(sentence: str) -> list[str]:
    """Return the statements that a sentence asks for."""
    if both := re.search(r"set both to (\d+)", sentence):
        return [STATE.format(f"version = {both[1]}, last_version = {both[1]}")]
    if one := re.search(r"set async_history_state\.(\w+) to (\w+)", sentence):
        return [STATE.format(f"{one[1]} = {one[2]}")]
    begin = min(at for at in map(sentence.find, ("INSERT", "DELETE", "UPDATE")) if at >= 0)
    return sentence[begin:].removesuffix(".").removesuffix(", and check again").split("; ")


async def test_many_damaged_records_are_counted(engine: AsyncEngine) -> None:
    async with SqlHistoryManager(engine=engine) as history:
        await history.batch_add_history(
            [
                {"memory_id": f"m{n}", "new_memory": "x", "event": "ADD", "cause": {"run_id": "r"}}
                for n in range(30)
            ]
        )
        await run(engine, "UPDATE async_history_records SET cause = '{' WHERE seq > 15")
        await run(engine, "DELETE FROM async_history_marks WHERE seq = 3")
        *named, more, marks = (await history.check()).problems
    assert [re.findall(r"seq (\d+)", one) for one in named] == [[str(n)] for n in range(16, 26)]
    assert more == "5 more records are damaged: check again after mending the first ones."
    assert "(mark, seq)" in marks
    assert "16" not in re.findall(r", (\d+)\)", marks)


@pytest.mark.parametrize(
    "damage",
    [
        "new_memory = CAST(x'ff' || 'secret' AS TEXT)",
        "user_id = x'ff'",
        "occurred_at = 'secret', created_at = NULL",
    ],
)
async def test_a_read_of_it_is_a_typed_error_without_the_value(
    engine: AsyncEngine, damage: str
) -> None:
    async with SqlHistoryManager(engine=engine) as history:
        await fill(history)
        await run(engine, RECORD.format(damage))
        with pytest.raises(StorageCorrupt) as caught:
            await history.get_history("m bob")
        assert "secret" not in str(caught.value)
        assert len(await history.get_history("m ann")) == 1


async def test_a_record_with_the_greatest_number_is_read(engine: AsyncEngine) -> None:
    async with SqlHistoryManager(engine=engine) as history:
        await fill(history)
        await run(engine, RECORD.format(f"seq = {(1 << 63) - 1}"))
        assert "The newest record has the number 9,223," in (await history.check()).problems[0]


@pytest.mark.parametrize("encoding", ["UTF-16le", "UTF-16be"])
async def test_texts_of_a_file_in_utf_16_are_read_as_such(
    engine: AsyncEngine, encoding: str
) -> None:
    await run(engine, f"PRAGMA encoding = '{encoding}'")
    async with SqlHistoryManager(engine=engine) as history:
        await history.add_history("m", None, "\u00e9", "ADD", context={"\u00e9": "\u65e5"})
        assert not (await history.check()).problems
        await run(engine, "UPDATE async_history_records SET new_memory = CAST(x'd8d8' AS TEXT)")
        assert f"new_memory is not {encoding}" in (await history.check()).problems[0]


async def test_long_texts_are_read_a_few_at_once(engine: AsyncEngine) -> None:
    at_once: list[int] = []

    def note(_: object, __: object, statement: str, *others: object) -> None:
        if "typeof" in statement:
            at_once.append(statement.rpartition(" IN ")[2].count("?"))

    async with SqlHistoryManager(engine=engine) as history:
        for number in range(10):
            await history.add_history("m", None, "\u00e9" * 150_000, "ADD", id=f"{number}")
        await run(engine, "UPDATE async_history_records SET context = x'ff' WHERE id = '8'")
        event.listen(engine.sync_engine, "before_cursor_execute", note)
        (problem,) = (await history.check()).problems
    assert "seq 9" in problem
    assert "context is not a text" in problem
    assert max(at_once) == 3
