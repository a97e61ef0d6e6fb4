"""Forgetting an owner in a SQLite file: its bytes, other managers, and later costs."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mem0.memory.storage import SQLiteManager

from async_history import Erased, HistoryRecord, Owner, check_history, open_history
from async_history._sqlite.connecting.connection import ThreadConnection
from async_history.backend import operation

pytestmark = pytest.mark.once

NEEDLES = ("ann-7f3a", "secret text", "secret context", "secret cause", "secret message")


def found_in(folder: Path) -> list[str]:
    stored = b"".join(path.read_bytes() for path in folder.iterdir())
    return [needle for needle in NEEDLES if needle.encode() in stored]


@pytest.mark.parametrize("vacuum", [False, True])
async def test_nothing_of_an_owner_is_left_in_file_or_log(vacuum: bool, tmp_path: Path) -> None:
    """VACUUM is only needed for earlier text in the file's free space."""
    ann: dict[str, Any] = {"user_id": "ann-7f3a"}
    async with open_history(tmp_path / "h.db") as history:
        for n in range(90):
            await history.add_history(f"m{n}", None, f"secret text {n}", "ADD")  # owned later
        for n in range(300):
            await history.add_history(
                f"m{n % 200}",
                None,
                f"secret text {n}",
                "UPDATE",
                owner={**ann, "agent_id": "bot"} if n % 200 % 2 else ann,
                context={"secret context": n},
                cause={"run_id": f"secret cause {n}"},
            )
        for n in range(5):
            await history.save_messages(
                [{"role": "user", "content": "secret message"}], f"run_id=r{n}&user_id=ann-7f3a"
            )
        if vacuum:
            leave_free_space(tmp_path / "h.db")
        assert found_in(tmp_path) == list(NEEDLES)
        report = await history.erase(**ann, reason="asked", vacuum=vacuum)
        assert report.messages == 5
        assert found_in(tmp_path) == []
    assert found_in(tmp_path) == []
    assert (await check_history(str(tmp_path / "h.db"))).problems == ()


def leave_free_space(path: Path) -> None:
    """Remove a text as plain SQLite does: it stays in free pages of the file."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA secure_delete = OFF")
        connection.execute("CREATE TABLE other (content TEXT)")
        connection.executemany("INSERT INTO other VALUES (?)", [("secret text" * 300,)] * 2_000)
        connection.execute("DROP TABLE other")


async def test_other_managers_of_the_file_refuse_too(tmp_path: Path) -> None:
    """Also for memories that they have read, and for new ones. Only plain mem0 does not check."""
    path = tmp_path / "h.db"
    ann: dict[str, Any] = {"user_id": "ann"}
    async with open_history(path) as ours, open_history(path) as theirs:
        for n in range(20):
            await theirs.add_history(f"m{n}", None, "a", "ADD", owner=ann)
        await theirs.add_history("plain", None, "a", "ADD")
        await theirs.add_history("shared", None, "a", "ADD", owner={**ann, "agent_id": "bot"})
        await ours.erase(**ann, reason="asked", vacuum=False)
        with pytest.raises(Erased):
            await theirs.add_history("m1", "a", "b", "UPDATE")
        with pytest.raises(Erased):
            await theirs.batch_add_history(
                [{"memory_id": f"m{n}", "new_memory": "b", "event": "UPDATE"} for n in range(12)]
            )
        # A record without text is accepted. Then its owner, with one scope left, is known.
        assert (await theirs.add_history("shared", None, None, "DELETE")).owner is not None
        with pytest.raises(Erased):
            await theirs.add_history("shared", None, "b", "ADD")
        await theirs.add_history("plain", "a", "b", "UPDATE")
        assert (await theirs.add_history("n", None, "a", "ADD", owner=ann)).owner == Owner(**ann)
        assert await theirs.count_history(text="b") == 1
    with closing(SQLiteManager(str(path))) as plain:
        plain.add_history("m1", "a", "b", "UPDATE")
    async with open_history(path) as history:
        assert [r.new_memory for r in await history.get_history("m1")] == [None, "b"]
        assert (await history.erase(memory_ids=["m1"], reason="again", vacuum=False)).records == 1


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The statements of each batch that inserts rows."""
    batches: list[set[str]] = []
    real: Any = ThreadConnection.run

    async def run(self: ThreadConnection, work: Any) -> Any:
        def traced(connection: sqlite3.Connection) -> Any:
            ran: set[str] = set()  # a trigger's statements are reported as comments
            connection.set_trace_callback(ran.add)
            try:
                return work(connection)
            finally:
                connection.set_trace_callback(None)
                if any("INSERT" in sql for sql in ran):
                    batches.append(ran)

        return await real(self, traced)

    monkeypatch.setattr(ThreadConnection, "run", run)
    return batches


async def test_recording_stays_one_statement_after_an_erasure(
    tmp_path: Path, batches: list[set[str]]
) -> None:
    """Except for the first batch, which finds out that there was one."""
    async with open_history(tmp_path / "h.db") as history:
        await history.add_history("m", None, "a", "ADD", owner={"user_id": "ann"})
        await history.erase(user_id="ann", reason="asked", vacuum=False)
        await history.add_history("x", None, "a", "ADD")
        batches.clear()
        for n in range(5):
            await history.add_history(f"n{n}", None, "a", "ADD")
            await history.add_history(f"o{n}", None, "a", "ADD", owner={"user_id": "ann"})
            await history.batch_add_history([change(f"n{k}") for k in range(20)])
            await history.add_history(f"o{n}", "a", "b", "UPDATE")
        assert [len(ran) for ran in batches] == [1] * 20
        with pytest.raises(Erased):
            await history.add_history("m", None, "a", "UPDATE")
        assert len(batches[-1]) > 1


async def test_recording_stays_as_cheap_after_an_erasure_of_memories(
    tmp_path: Path, batches: list[set[str]]
) -> None:
    """If no memory has an owner: as before, with statements for mem0's columns alone."""
    async with open_history(tmp_path / "h.db") as history:

        async def record() -> list[str]:
            batches.clear()
            for n in range(3):
                await history.add_history("m", None, "a", "ADD")
                await history.batch_add_history([change(f"n{k}") for k in range(20 + n)])
            return [sql.partition(" SELECT")[0] for ran in batches for sql in ran]

        await record()  # which compiles the statements
        before = await record()
        await history.erase(memory_ids=["m", "n1"], reason="asked", vacuum=False)
        with operation():
            await history.erase(memory_ids=["o"], reason="asked", vacuum=False)
            with pytest.raises(Erased):
                await history.add_history("o", None, "a", "ADD")
        assert await record() == before


def change(memory_id: str) -> dict[str, Any]:
    return {"memory_id": memory_id, "new_memory": "b", "event": "UPDATE"}


async def test_a_dump_and_a_copy_of_the_file_refuse_too(tmp_path: Path) -> None:
    async with open_history(tmp_path / "h.db") as history:
        await history.add_history("m", None, "a", "ADD", owner={"user_id": "ann"})
        await history.erase(user_id="ann", reason="asked", vacuum=False)
        await history.backup(tmp_path / "copy.db")
    with closing(sqlite3.connect(tmp_path / "h.db")) as file:
        dump = "\n".join(file.iterdump())
    with closing(sqlite3.connect(tmp_path / "dumped.db")) as dumped:
        dumped.executescript(dump)
    for name in ("copy.db", "dumped.db"):
        async with open_history(tmp_path / name) as history:
            with pytest.raises(Erased):
                await history.add_history("m", None, "a", "UPDATE")
            kept: list[HistoryRecord] = await history.get_history("m")
            assert [(r.new_memory, r.owner) for r in kept] == [(None, None)]
            await history.add_history("n", None, "a", "ADD")
