"""Tables that an administrator has changed: refused at opening, or named by `check`."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from async_history import HistoryManager, MigrationError, open_history
from async_history.sql import SqlHistoryManager
from tests.support.mariadb_server import run_sql

pytestmark = pytest.mark.once

NewDatabase = Callable[[], URL]

_CHANGES = (
    "async_history_marks ENGINE=MyISAM",
    "async_history_ledger_tiles ENGINE=Aria",
    "async_history_erased ENGINE=MEMORY",
    "async_history_records CONVERT TO CHARACTER SET latin1",
    "async_history_owners MODIFY long_names LONGTEXT COLLATE utf8mb4_general_ci",
    "async_history_records MODIFY memory_id VARCHAR(255) COLLATE utf8mb4_bin NOT NULL",
    "async_history_records MODIFY actor_id VARBINARY(50)",
    "async_history_messages MODIFY content TEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
)


async def refusal(url: URL) -> MigrationError | None:
    try:
        async with SqlHistoryManager(url, migrate=False):
            return None
    except MigrationError as error:
        return error


@pytest.mark.mariadb
@pytest.mark.parametrize("change", _CHANGES)
async def test_changed_tables_are_refused_until_they_are_set_right(
    new_database: NewDatabase, change: str
) -> None:
    """With the statements of the message, which names a few changes at a time."""
    url = new_database()
    async with SqlHistoryManager(url, ledger=True) as history:
        record = await history.add_history("m", None, "tea", "ADD", actor_id="Ann")
    run_sql(url, f"ALTER TABLE {change}")
    with pytest.raises(MigrationError, match=change.split()[0]):
        await SqlHistoryManager(url)
    for _ in range(3):
        error = await refusal(url)
        if error is not None:
            run_sql(url, *re.findall(r"ALTER TABLE [^;]+?(?=;|$)", str(error)))
    async with SqlHistoryManager(url) as history:
        assert await history.get_history("m") == [record]


@pytest.mark.mariadb
async def test_tables_of_the_same_names_elsewhere_do_not_matter(new_database: NewDatabase) -> None:
    """Only the history's own are looked at: in its database, and a ledger only if it has one."""
    url, other = new_database(), new_database()
    run_sql(
        other,
        "CREATE TABLE async_history_marks (mark BIGINT, seq BIGINT, PRIMARY KEY (mark, seq))"
        " ENGINE=MyISAM",
    )
    async with SqlHistoryManager(url):
        pass
    async with SqlHistoryManager(other.set(database=url.database)):
        pass


async def problems(history: HistoryManager) -> Sequence[str]:
    return (await history.check()).problems


@pytest.mark.mariadb
async def test_check_names_missing_indexes_of_mariadb(new_database: NewDatabase) -> None:
    url = new_database()
    async with SqlHistoryManager(url, ledger=True) as history:
        await history.add_history("m", None, "tea", "ADD")
        assert await problems(history) == ()
        run_sql(
            url,
            "ALTER TABLE async_history_records DROP INDEX async_history_records_id,"
            " ADD INDEX theirs (id)",
            "ALTER TABLE async_history_records RENAME INDEX async_history_records_memory TO other",
            "ALTER TABLE async_history_ledger DROP INDEX async_history_ledger_places",
            "ALTER TABLE async_history_erased DROP PRIMARY KEY, ADD COLUMN theirs INT PRIMARY KEY",
        )
        found = await problems(history)
        assert len(found) == 3
        lost_keys = [
            one for one in found if one.startswith("async_history_erased lacks its primary")
        ]
        run_sql(url, *(one.partition(": ")[2].rstrip(".") for one in found if one not in lost_keys))
        assert list(await problems(history)) == lost_keys
        assert len(lost_keys) == 1


async def test_check_names_missing_indexes_of_other_databases(
    tmp_path: Path, engines: Callable[[str], AsyncEngine]
) -> None:
    engine = engines(f"sqlite+aiosqlite:///{tmp_path / 'history.db'}")
    async with open_history(engine=engine) as history:
        await history.add_history("m", None, "tea", "ADD")
        async with engine.begin() as connection:
            await connection.execute(text("DROP INDEX async_history_records_memory"))
        (found,) = await problems(history)
        assert found.startswith("The index async_history_records_memory is missing: CREATE INDEX")
