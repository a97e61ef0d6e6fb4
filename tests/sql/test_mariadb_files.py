"""Text that an erasure leaves in the files of a MariaDB server, and the report of it."""

import re

import pytest

from async_history.sql import SqlHistoryManager
from tests.support.mariadb_server import MariaDBServer, run_sql

pytestmark = [pytest.mark.mariadb, pytest.mark.once]

_WORD = b"ErasedWord"


async def test_text_left_by_an_erasure_is_only_where_the_report_says() -> None:
    server = MariaDBServer(**{"log-bin": "binlog", "innodb-doublewrite": "ON"}).create().start()
    tables = {f"async_history_{name}.ibd" for name in ("records", "messages", "owners")}
    try:
        run_sql(server.url(), "CREATE DATABASE h")
        url = server.url("h")
        async with SqlHistoryManager(url, ledger=True) as history:
            texts = [f"{_WORD.decode()} {number} " + "x" * 100 * number for number in range(100)]
            for number, text in enumerate(texts):
                await history.add_history(f"m{number}", None, text, "ADD", owner={"user_id": "ann"})
            message = {"role": "user", "content": texts[0]}
            await history.save_messages([message], "user_id=ann")
            report = await history.erase(user_id="ann", reason="asked")
        said = " ".join(report.remains)
        (command,) = re.findall(r"OPTIMIZE TABLE [^)]+", said)
        assert "async_history_ledger" in command, "which had the salts"
        run_sql(url, command)
        left = server.files_with(_WORD)
        assert not tables & left
        logs = {"ib_logfile0", "ibdata1"} & left
        assert logs
        assert all(name in said for name in logs)
        assert any(name.startswith("binlog.") for name in left)
        assert "binary log" in said
        others = {name for name in left - logs if not name.startswith("binlog.")}
        assert others <= {"undo001", "undo002", "undo003"}
    finally:
        server.remove()
