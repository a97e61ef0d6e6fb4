"""Programs that build mem0's classes themselves: `install()`, and the commands that call it."""

import asyncio
import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import mem0
import pytest
from mem0 import AsyncMemory as PlainAsyncMemory
from mem0 import Memory as PlainMemory
from mem0.memory import main as mem0_main
from mem0.memory import storage
from mem0.memory.storage import SQLiteManager

from async_history import open_history
from async_history.blocking import BlockingHistoryManager
from async_history.mem0 import AsyncMemory, Memory, install, uninstall
from tests.conftest import stores, url_of
from tests.mem0.memories import Configured
from tests.support.docs_examples import example
from tests.support.patience import LONG_S

pytestmark = [
    pytest.mark.mem0,
    pytest.mark.filterwarnings("ignore"),  # mem0's own, of pydantic and swig
]


@pytest.fixture(autouse=True)
def uninstalled() -> Iterator[None]:
    yield
    uninstall()


def names() -> list[Any]:
    return [
        *(mem0.Memory, mem0_main.Memory, mem0.AsyncMemory, mem0_main.AsyncMemory),
        *(storage.SQLiteManager, mem0_main.SQLiteManager),
    ]


PLAIN = [PlainMemory] * 2 + [PlainAsyncMemory] * 2 + [SQLiteManager] * 2
OURS = [Memory] * 2 + [AsyncMemory] * 2 + [BlockingHistoryManager] * 2


def test_every_module_of_mem0_gets_our_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also another module of mem0, and one that is imported later."""
    early, late = ModuleType("mem0.early"), ModuleType("mem0.late")
    vars(early)["Client"] = mem0.Memory
    monkeypatch.setitem(sys.modules, "mem0.early", early)
    monkeypatch.setitem(sys.modules, "nothing", None)
    for _ in range(2):
        install()
        assert (names(), vars(early)["Client"]) == (OURS, Memory)
    vars(late)["Client"] = mem0.Memory
    monkeypatch.setitem(sys.modules, "mem0.late", late)
    for _ in range(2):
        uninstall()
        assert names() == PLAIN
        assert vars(early)["Client"] is vars(late)["Client"] is PlainMemory


@pytest.mark.parametrize("store", stores("rollback", "postgres"))
async def test_a_program_records_into_any_url(
    store: str, request: pytest.FixtureRequest, tmp_path: Path, configured: Configured
) -> None:
    """With mem0's classes, with their subclasses, and with names that it imported before."""
    url = url_of(store, request, tmp_path)
    install()

    class Own(mem0.Memory):  # type: ignore[misc]
        pass

    config = configured(history_db_path=url)
    for number, kind in enumerate((mem0.Memory, Own, PlainMemory, mem0.AsyncMemory)):
        config["vector_store"]["config"]["path"] = str(tmp_path / f"vectors-{number}")
        made = kind.from_config(config)
        memory = await made if inspect.isawaitable(made) else made
        assert isinstance(memory, PlainMemory | PlainAsyncMemory)
        assert isinstance(memory, mem0.Memory | mem0.AsyncMemory) is (kind is not PlainMemory)
        if kind is mem0.AsyncMemory:
            added = await memory.add("likes tea", user_id="ann", infer=False)
            await memory.aclose()
        else:
            adding = asyncio.to_thread(memory.add, "likes tea", user_id="ann", infer=False)
            added = await adding
            await asyncio.to_thread(memory.db.close)
        memory.vector_store.client.close()
        async with open_history(url) as history:
            (record,) = await history.get_history(added["results"][0]["id"])
        assert (record.event, record.new_memory) == ("ADD", "likes tea")
        owner = None if kind is PlainMemory else "ann"
        assert (record.owner and record.owner.user_id) == owner


def test_the_example(configured: Configured, tmp_path: Path) -> None:
    scope: dict[str, Any] = {}
    text = example("mem0-install").replace("postgresql://agent@db.example/app", f"{tmp_path}/h.db")
    exec(text, scope)
    memory = scope["new_memory"](configured())
    assert type(memory) is Memory
    assert (tmp_path / "h.db").exists()
    memory.close()
    memory.vector_store.client.close()


def test_names_that_were_imported_before_are_warned_of(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Under a second name, as multiprocessing imports `__main__`.
    monkeypatch.setitem(sys.modules, "other_name", sys.modules[__name__])
    for _ in range(2):
        install()
    (message,) = [entry.getMessage() for entry in caplog.records if entry.name == "async_history"]
    assert f"{__name__}.PlainMemory" in message
    assert "other_name" not in message
    assert "mem0.memory" not in message.partition(" imported ")[0]


def run(
    *command: str, folder: Path, check: int = 0, **variables: str
) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        [sys.executable, "-m", *command],
        capture_output=True,
        text=True,
        timeout=LONG_S,
        env={**os.environ, "MEM0_DIR": str(folder), **variables},
    )
    assert done.returncode == check, done.stderr
    return done


RUN = ("async_history.cli", "run", "--", sys.executable)


@pytest.mark.subprocess
@pytest.mark.once
class TestCommands:
    def test_a_program_keeps_its_sitecustomize_and_its_exit_status(self, tmp_path: Path) -> None:
        (tmp_path / "sitecustomize.py").write_text("print('its own', flush=True)")
        path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
        program = "import mem0; print(mem0.Memory.__module__); raise SystemExit(7)"
        command = (*RUN, "-W", "ignore", "-c", program)
        done = run(*command, folder=tmp_path, check=7, PYTHONPATH=path)
        # async-history run is a Python with that sitecustomize too.
        assert done.stdout.splitlines() == ["its own", "its own", Memory.__module__]

    def test_a_program_has_our_classes_whatever_it_imports_first(self, tmp_path: Path) -> None:
        """`python -m async_history.mem0`: Python's options, and the program's arguments."""
        program = tmp_path / "program.py"
        program.write_text(
            "import sys, async_history.mem0 as ours\n"
            "from mem0 import Memory, AsyncMemory\n"
            "assert (Memory, AsyncMemory) == (ours.Memory, ours.AsyncMemory)\n"
            "assert not any('_startup' in entry for entry in sys.path)\n"
            "print(sys.argv[1:], sys.flags.utf8_mode, sys.path[0])\n"
        )
        done = subprocess.run(
            [sys.executable, "-Xutf8", "-m", "async_history.mem0", str(program), "-m", "x"],
            capture_output=True,
            text=True,
            timeout=LONG_S,
            env={**os.environ, "MEM0_DIR": str(tmp_path)},
        )
        assert done.stdout == f"['-m', 'x'] 1 {tmp_path}\n", done.stderr

    def test_a_signal_ends_the_command(self, tmp_path: Path) -> None:
        """Also a signal that Python ignores."""
        command = ("run", "--", "sh", "-c", "kill -PIPE $$")
        run("async_history.cli", *command, folder=tmp_path, check=-13)

    def test_a_missing_command(self, tmp_path: Path) -> None:
        done = run("async_history.cli", "run", "nothing-there", folder=tmp_path, check=127)
        assert done.stderr.strip().endswith("nothing-there: No such file or directory")
        run("async_history.cli", "run", str(tmp_path), folder=tmp_path, check=126)
