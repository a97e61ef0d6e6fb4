"""A log of operations that another program changed on PostgreSQL."""

import asyncpg
import pytest

from async_history import StorageCorrupt, open_history

pytestmark = [pytest.mark.postgres, pytest.mark.once]


@pytest.mark.parametrize(
    "damage",
    [
        *[f"arguments = '{value}'" for value in ("[1]", "7", "null", '"x"')],
        f"arguments = '{'[' * 3_000}{']' * 3_000}'",
        "begun_at = 'infinity'",
        "ended_at = '-infinity'",
        "begun_at = '99999-01-01'",
    ],
)
async def test_a_damaged_log_has_the_error_of_other_damage(
    damage: str, url: str, raw: asyncpg.Connection
) -> None:
    async with open_history(url) as history:
        await history.reset()
        await raw.execute(f"UPDATE operations SET {damage}")
        with pytest.raises(StorageCorrupt, match="log of operations is damaged"):
            await history.operations()


async def test_an_erasure_without_its_arguments_is_damaged(
    url: str, raw: asyncpg.Connection
) -> None:
    async with open_history(url) as history:
        await history.add_history("m", None, "x", "ADD")
        await history.erase(memory_ids=["m"], reason="asked for it")
        await raw.execute("UPDATE operations SET arguments = '{}'")
        with pytest.raises(StorageCorrupt, match="log of operations is damaged"):
            await history.erasures()
        assert len(await history.operations()) == 1
