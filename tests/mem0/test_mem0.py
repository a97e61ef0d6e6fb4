"""mem0's AsyncMemory on this library: the real package, a real vector store, a scripted model."""

import asyncio
import contextlib
import gc
import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch
from uuid import uuid4

import pytest
from fastapi.testclient import TestClient
from mem0 import AsyncMemory as PlainAsyncMemory
from mem0.configs.base import MemoryConfig
from mem0.memory import main as mem0_main
from mem0.memory.storage import SQLiteManager

from async_history import (
    HistoryClosed,
    HistoryConflict,
    HistoryError,
    HistoryOptions,
    HistoryRecord,
    InvalidInput,
    StorageRefused,
    open_history,
)
from async_history.blocking._sanitize import Sanitizer, message_as_given
from async_history.mem0 import AsyncMemory, HistoryNotWritten, Memory
from async_history.mem0._assigned import OWN_RECORDER
from async_history.mem0._operation import Operation
from async_history.mem0._recorder import Recorder
from tests.conftest import stores, url_of
from tests.mem0.fakes import InstantEmbedder, Row, answer
from tests.mem0.memories import (
    IS_V1,
    Configured,
    MakeMemory,
    add,
    assert_chain,
    held_update,
    make_instant,
    release_all,
    until,
)
from tests.subprocesses.openai_server import DIMENSIONS, Model
from tests.support.docs_examples import example
from tests.support.patience import LONG_S, SOON_S

pytestmark = [
    pytest.mark.mem0,
    pytest.mark.filterwarnings("ignore"),  # mem0's own, of pydantic and swig
]


class TestLikePlainMem0:
    async def test_results_and_history_are_the_same(
        self, configured: Configured, tmp_path: Path
    ) -> None:
        """The same calls on both: everything but ids and times must be equal."""

        async def use(memory: Any) -> list[Any]:
            returned: list[Any] = []
            first = await add(memory, "likes tea", metadata={"role": "x"})
            messages = [
                {"role": "user", "content": "I am Ann", "name": "ann"},
                {"role": "assistant", "content": "Hello"},
                {"role": "system", "content": "ignored"},
            ]
            returned.append(await memory.add(messages, agent_id="a", infer=False))
            returned.append(await memory.update(first, "likes mate"))
            returned.append(await memory.history(first))
            returned.append(await memory.delete(first))
            returned.append(await memory.history(first))
            returned.append(await memory.delete_all(agent_id="a"))
            returned.append(await memory.history("nothing"))
            for wrong in (
                memory.delete(first),
                memory.update(first, "x"),
                memory.delete_all(),
                memory.add(7, user_id="u"),
            ):
                with pytest.raises(Exception, match=r".") as failed:
                    await wrong
                returned.append(
                    (type(failed.value).__name__, str(failed.value).replace(first, "ID"))
                )
            return returned

        plain = PlainAsyncMemory.from_config(configured())
        make_instant(plain)
        expected = without_chance(await use(plain))
        plain.close()
        ours = AsyncMemory.from_config(configured(), history=str(tmp_path / "ours.db"))
        make_instant(ours)
        async with ours:
            assert without_chance(await use(ours)) == expected

    async def test_only_the_named_file_is_touched(
        self, configured: Configured, tmp_path: Path
    ) -> None:
        config = configured()
        memory = AsyncMemory.from_config(config, history=str(tmp_path / "elsewhere.db"))
        make_instant(memory)
        assert memory.config.history_db_path == config["history_db_path"]
        async with memory:
            await add(memory, "x")
            await memory.reset()
        assert (tmp_path / "elsewhere.db").exists()
        assert not Path(config["history_db_path"]).exists()

    async def test_mem0s_history_path_is_used(
        self, make_memory: MakeMemory, tmp_path: Path
    ) -> None:
        async with make_memory() as memory:
            memory_id = await add(memory, "x")
        async with open_history(tmp_path / "history.db") as history:
            assert [r.new_memory for r in await history.get_history(memory_id)] == ["x"]

    async def test_a_history_that_is_turned_off(
        self, configured: Configured, tmp_path: Path
    ) -> None:
        for off in ("null://", "", None):
            config = MemoryConfig(**configured())
            config.history_db_path = off
            memory = AsyncMemory(config, history=off)
            make_instant(memory)
            async with memory:
                assert await memory.history(await add(memory, "x")) == []
        assert not (tmp_path / "history.db").exists()

    async def test_a_file_of_mem0_0_0_2_keeps_its_texts(
        self, make_memory: MakeMemory, tmp_path: Path
    ) -> None:
        with contextlib.closing(sqlite3.connect(tmp_path / "history.db")) as old:
            old.execute(
                "CREATE TABLE history (id TEXT PRIMARY KEY, memory_id TEXT, prev_value TEXT,"
                " new_value TEXT, event TEXT, timestamp DATETIME, is_deleted INTEGER)"
            )
            old.execute(
                "INSERT INTO history VALUES ('1', 'm', NULL, 'old text', 'ADD', '2024-01-01', 0)"
            )
            old.commit()
        async with make_memory() as memory:
            (record,) = await memory.history("m")
        assert record["new_memory"] == "old text"

    @pytest.mark.subprocess
    def test_another_version_is_refused(self) -> None:
        source = (
            "import importlib.metadata as m; real = m.version\n"
            "m.version = lambda name: '3.1' if name == 'mem0ai' else real(name)\n"
            "import async_history.mem0"
        )
        done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1] == (
            "ImportError: async_history.mem0 works with mem0ai 1.0 to 2.x, not 3.1"
        )


def without_chance(value: Any) -> Any:
    """Return results without ids and times."""
    if isinstance(value, dict):
        return {
            key: "…"
            if key in ("id", "memory_id", "created_at", "updated_at")
            else without_chance(v)
            for key, v in value.items()
        }
    return [without_chance(v) for v in value] if isinstance(value, list | tuple) else value


@pytest.mark.once
class TestRecords:
    async def test_text_that_no_database_stores_is_replaced(self, memory: AsyncMemory) -> None:
        memory_id = await add(memory, "a\0b")
        assert [r["new_memory"] for r in await memory.history(memory_id)] == ["a\ufffdb"]

    async def test_a_bad_time_does_not_lose_the_record(self, memory: AsyncMemory) -> None:
        memory_id = await add(memory, "x", metadata={"created_at": "yesterday"})
        assert len(await memory.history(memory_id)) == 1

    @pytest.mark.skipif(IS_V1, reason="mem0 1.0 has no message buffer")
    async def test_messages_that_are_not_text_come_back_unchanged(
        self, make_memory: MakeMemory, model: Model
    ) -> None:
        contents: list[Any] = ["plain", '["json text"]']
        async with make_memory() as memory:
            for content in contents:
                await memory.add([{"role": "user", "content": content}], user_id="u")
            manager: Any = await memory._history_state().open_store()
            kept = await manager.get_last_messages("user_id=u")
            assert [message.content for message in kept] == contents
            for content in ([{"type": "text", "text": "x"}], {"a": 1}, "text", None, '["x"]'):
                given = {"role": "user", "content": content, "name": None}
                await manager.save_messages([Sanitizer().message(given)], "s")
                (last,) = await manager.get_last_messages("s", 1)
                assert message_as_given(last)["content"] == content

    @pytest.mark.skipif(IS_V1, reason="mem0 1.0 has no batches")
    async def test_records_of_a_batch_have_actor_role_and_time(
        self, make_memory: MakeMemory, model: Model
    ) -> None:
        model.script = lambda _: json.dumps({"memory": [{"text": "likes tea"}, {"text": "is Ann"}]})
        async with make_memory() as memory:
            messages = [{"role": "user", "content": "I am Ann and like tea", "name": "ann"}]
            result = await memory.add(messages, user_id="u")
            for added in result["results"]:
                (record,) = await memory.history(added["id"])
                assert (record["actor_id"], record["role"]) == ("ann", "user")
                assert record["created_at"] == record["updated_at"]

    @pytest.mark.skipif(IS_V1, reason="mem0 1.0 has no message buffer")
    async def test_the_model_sees_the_last_messages(
        self, make_memory: MakeMemory, model: Model
    ) -> None:
        async with make_memory() as memory:
            await memory.add("my cat is called Miu", user_id="u")
            await memory.add("what did I say?", user_id="u")
        assert "Miu" in json.dumps(model.chats[1])
        assert "Miu" not in json.dumps(model.chats[1][0])


async def all_operations(memory: Any) -> str:
    """Make every call that uses the history once; return a memory's id."""
    memory_id = await add(memory, "tea")
    await memory.update(memory_id, "mate")
    await memory.delete(memory_id)
    await memory.add("I like cocoa", user_id="u")
    await memory.history(memory_id)
    return memory_id


class Threads:
    """Notes which threads call an object's methods."""

    def __init__(self, patch: pytest.MonkeyPatch, watched: type, *names: str) -> None:
        self.by_name: dict[str, set[int]] = {}
        for name in names:
            patch.setattr(watched, name, self._noting(name, getattr(watched, name)))

    def _noting(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def noting(*arguments: Any, **options: Any) -> Any:
            self.by_name.setdefault(name, set()).add(threading.get_ident())
            return method(*arguments, **options)

        return noting


NAMES = ["add_history", "get_history"]
NAMES += [] if IS_V1 else ["batch_add_history", "save_messages", "get_last_messages"]


class TestThreads:
    async def test_the_history_uses_no_thread(
        self, memory: AsyncMemory, model: Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model.script = lambda messages: '{"memory": [{"text": "likes cocoa"}], "facts": []}'
        threads = Threads(monkeypatch, Recorder, *NAMES)
        embedding = Threads(monkeypatch, InstantEmbedder, "embed")
        await all_operations(memory)
        assert threads.by_name == {name: {threading.get_ident()} for name in NAMES}
        assert threading.get_ident() not in embedding.by_name["embed"]

    async def test_plain_mem0_keeps_using_threads(
        self, configured: Configured, model: Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        threads = Threads(monkeypatch, SQLiteManager, *NAMES)
        plain = PlainAsyncMemory.from_config(configured())
        make_instant(plain)
        await all_operations(plain)
        plain.close()
        assert threads.by_name.keys() >= {"add_history", "get_history"}
        assert threading.get_ident() not in set().union(*threads.by_name.values())

    async def test_a_mem0_that_still_calls_in_threads_works(
        self, memory: AsyncMemory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(mem0_main, "asyncio", asyncio)
        threads = Threads(monkeypatch, Recorder, "add_history")
        memory_id = await all_operations(memory)
        assert threading.get_ident() not in threads.by_name["add_history"]
        history = await memory.history(memory_id)
        assert [record["event"] for record in history] == ["ADD", "UPDATE", "DELETE"]
        assert_chain(history)

    async def test_records_submitted_at_the_same_time_keep_their_order(
        self, memory: AsyncMemory
    ) -> None:
        def change(old: str | None, new: str) -> dict[str, Any]:
            event = "UPDATE" if old else "ADD"
            return {"memory_id": "m", "old_memory": old, "new_memory": new, "event": event}

        async def pipeline() -> None:
            memory.db.batch_add_history([change(None, "a"), change("a", "b")])
            memory.db.add_history("m", "b", "c", "UPDATE")
            memory.db.batch_add_history([])
            memory.db.batch_add_history([change("c", "d")])
            memory.db.save_messages([], "scope")

        await memory._history_run(pipeline)
        history = await memory.history("m")
        assert [record["new_memory"] for record in history] == ["a", "b", "c", "d"]

    async def test_an_operation_makes_no_reference_cycle(
        self, memory: AsyncMemory, model: Model
    ) -> None:
        model.script = lambda messages: '{"memory": [{"text": "likes cocoa"}], "facts": []}'
        await all_operations(memory)
        gc.collect()
        gc.disable()
        try:
            await all_operations(memory)
            # A worker thread drops its call a moment after it has set the result.
            await until(lambda: not any(isinstance(one, Operation) for one in gc.get_objects()))
        finally:
            gc.enable()


class TestConcurrency:
    async def test_no_thread_waits_for_the_disk(
        self, make_memory: MakeMemory, tmp_path: Path
    ) -> None:
        """64 operations wait for a locked file; two threads serve all others."""
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
        async with make_memory() as memory:
            ids = [await add(memory, str(n)) for n in range(64)]
            holder = sqlite3.connect(tmp_path / "history.db", isolation_level=None)
            holder.execute("BEGIN IMMEDIATE")
            updates = [asyncio.create_task(memory.update(i, "changed")) for i in ids]
            await until(lambda: all(memory.vector_store.rows[i]["data"] == "changed" for i in ids))
            await asyncio.wait_for(asyncio.to_thread(lambda: None), SOON_S)
            assert len(await memory.history(ids[0])) == 1, "reads do not wait"
            assert not any(update.done() for update in updates)
            holder.execute("COMMIT")
            holder.close()
            await asyncio.gather(*updates)
            for memory_id in ids:
                assert_chain(await memory.history(memory_id))

    @pytest.mark.parametrize("url", ["memory://", "null://"])
    async def test_a_manager_that_is_closed_while_the_vector_store_changes(
        self, make_memory: MakeMemory, url: str
    ) -> None:
        """The vector store has the change. The error is that of a record that can't be written."""
        async with open_history(url) as manager:
            memory = make_memory(history=manager)
            assert memory.db.db_path == manager.backend.where
            memory_id, update = await held_update(memory)
        release_all(memory)
        with pytest.raises(HistoryNotWritten) as failed:
            await update
        assert isinstance(failed.value.__cause__, HistoryClosed)
        assert failed.value.result == {"message": "Memory updated successfully!"}
        assert [record["new_memory"] for record in failed.value.records] == ["mate"]
        assert failed.value.unknown_ids == ()
        assert memory.vector_store.rows[memory_id]["data"] == "mate"

    async def test_a_history_whose_url_is_an_enum_member(self, make_memory: MakeMemory) -> None:
        class Url(str, Enum):  # noqa: UP042 - StrEnum is shown by its value
            NONE = "null://"

        async with make_memory(history=Url.NONE) as memory:
            assert memory.db.db_path == "null://"

    async def test_an_operations_error_has_only_its_own_records(
        self, make_memory: MakeMemory, tmp_path: Path
    ) -> None:
        """A trigger refuses some texts: those operations raise, with mem0's result."""
        async with make_memory() as memory:
            await add(memory, "first")
            with contextlib.closing(sqlite3.connect(tmp_path / "history.db")) as owner:
                owner.execute(
                    "CREATE TRIGGER rule BEFORE INSERT ON history WHEN new.new_memory LIKE 'bad%'"
                    " BEGIN SELECT RAISE(ABORT, 'never'); END"
                )
            texts = [f"{'bad' if n % 3 == 0 else 'good'} {n}" for n in range(30)]
            results = await asyncio.gather(
                *(memory.add(text, user_id="u", infer=False) for text in texts),
                return_exceptions=True,
            )
            for text, result in zip(texts, results, strict=True):
                if text.startswith("bad"):
                    assert isinstance(result, HistoryNotWritten)
                    assert isinstance(result.__cause__, StorageRefused)
                    assert isinstance(result.result, dict)
                    assert result.result["results"][0]["memory"] == text
                    assert [record["new_memory"] for record in result.records] == [text]
                else:
                    assert isinstance(result, dict)
                    assert len(await memory.history(result["results"][0]["id"])) == 1

    async def test_updates_and_deletes_of_one_memory_take_turns(self, memory: AsyncMemory) -> None:
        ids = [await add(memory, f"memory {n}") for n in range(5)]
        await asyncio.gather(
            *(memory.update(i, f"text {n}") for n in range(20) for i in ids),
        )
        for memory_id in ids:
            history = await memory.history(memory_id)
            assert len(history) == 21
            assert_chain(history)
            assert memory.vector_store.rows[memory_id]["data"] == history[-1]["new_memory"]
        results = await asyncio.gather(
            *(
                call
                for i in ids
                for call in (memory.update(i, "last"), memory.delete(i), memory.delete(i))
            ),
            return_exceptions=True,
        )
        assert all(result is None or isinstance(result, dict | ValueError) for result in results)
        for memory_id in ids:
            history = await memory.history(memory_id)
            assert_chain(history)
            assert history[-1]["event"] == "DELETE"
        assert memory._history_state().turns.queues.is_idle, "turns without waiters are forgotten"

    async def test_a_deletion_reads_the_memory_once(
        self, memory: AsyncMemory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        memory_id = await add(memory, "tea")
        store, looks = memory.vector_store, 0
        get = store.get

        def noted(vector_id: str) -> Any:
            nonlocal looks
            looks += 1
            return get(vector_id)

        monkeypatch.setattr(store, "get", noted)
        await memory.delete(memory_id)
        assert looks == 1

    async def test_a_memory_read_before_a_turn_is_read_again_in_it(
        self, memory: AsyncMemory
    ) -> None:
        memory_id = await add(memory, "tea")
        before = Row(memory_id, {"data": "what it said before somebody changed it"})
        await memory._history_run(lambda: memory._delete_memory(memory_id, before))
        assert_chain(await memory.history(memory_id))

    async def test_a_turn_ends_with_the_deletion(self, memory: AsyncMemory) -> None:
        """Also when mem0 deletes within another operation."""
        memory_id = await add(memory, "tea")

        async def body() -> tuple[bool, str]:
            operation = memory.db.require_operation()
            await memory.delete(memory_id)
            return operation.turns.is_held_here(memory_id), memory_id

        assert await memory._history_run(body) == (False, memory_id)

    async def test_different_memories_do_not_wait_for_each_other(
        self, make_memory: MakeMemory
    ) -> None:
        async with make_memory() as memory:
            one, other = await add(memory, "one"), await add(memory, "other")
            store = memory.vector_store
            slow = threading.Event()
            update, store.update = (
                store.update,
                lambda **given: (
                    slow.wait(LONG_S) if given["vector_id"] == one else None,
                    update(**given),
                ),
            )
            waiting = asyncio.create_task(memory.update(one, "slow"))
            await asyncio.sleep(0)
            await asyncio.wait_for(memory.update(other, "quick"), SOON_S)
            assert not waiting.done()
            slow.set()
            await waiting

    async def test_operations_that_change_several_memories_in_any_order_all_end(
        self, memory: AsyncMemory
    ) -> None:
        """As one `add` of mem0 1.0 may, even one memory twice."""
        one, other = await add(memory, "one"), await add(memory, "other")

        async def change(*memory_ids: str) -> None:
            for memory_id in memory_ids:
                await memory._update_memory(memory_id, f"text {uuid4()}", {})

        async with asyncio.timeout(LONG_S):
            await asyncio.gather(
                *(memory._history_run(lambda: change(one, other, one)) for _ in range(5)),
                *(memory._history_run(lambda: change(other, one, other)) for _ in range(5)),
            )
        for memory_id in (one, other):
            history = await memory.history(memory_id)
            assert len(history) == 16
            assert_chain(history)

    async def test_a_cancelled_operation_that_changed_the_store_has_its_record(
        self, make_memory: MakeMemory
    ) -> None:
        async with make_memory() as memory:
            memory_id, update = await held_update(memory)
            (task,) = memory._history_state().running
            update.cancel()
            with pytest.raises(asyncio.CancelledError):
                await update
            release_all(memory)
        assert task.exception() is None
        async with make_memory() as memory:
            assert [r["new_memory"] for r in await memory.history(memory_id)] == ["tea", "mate"]

    async def test_an_operation_whose_task_is_cancelled_cancels_its_caller(
        self, make_memory: MakeMemory
    ) -> None:
        """As at the end of a loop, which cancels every task."""
        async with make_memory() as memory:
            _, update = await held_update(memory)
            for task in memory._history_state().running:
                task.cancel()
            release_all(memory)
            await asyncio.wait([update], timeout=LONG_S)
            assert update.cancelled()

    async def test_a_failure_after_its_caller_was_cancelled_is_logged(
        self, make_memory: MakeMemory, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with make_memory() as memory:
            _, update = await held_update(memory)
            manager: Any = memory._history_state().manager
            manager.close()
            update.cancel()
            with pytest.raises(asyncio.CancelledError):
                await update
            release_all(memory)
        assert "an operation whose caller was cancelled failed" in caplog.text

    async def test_a_read_leaves_no_current_operation(self, memory: AsyncMemory) -> None:
        memory_id = await add(memory, "tea")
        await memory.history(memory_id)
        with pytest.raises(HistoryError, match="outside of an operation"):
            memory.db.get_history(memory_id)

    @pytest.mark.once
    async def test_resets_and_a_close_under_twenty_writers(
        self, make_memory: MakeMemory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        memory = make_memory()
        store = memory.vector_store
        monkeypatch.setattr(
            "mem0.memory.main.VectorStoreFactory.create", lambda *_: store, raising=True
        )

        async def write(number: int) -> None:
            for n in range(30):
                memory_id = await add(memory, f"{number}.{n}")
                with contextlib.suppress(ValueError):  # another task's reset removed it
                    await memory.update(memory_id, "changed")

        async def reset() -> None:
            for _ in range(5):
                await memory.reset()

        results = await asyncio.gather(
            *(write(n) for n in range(20)), reset(), return_exceptions=True
        )
        assert [r for r in results if r is not None and not isinstance(r, KeyError)] == []
        writers = [asyncio.create_task(write(n)) for n in range(20)]
        await asyncio.sleep(0.05)
        await memory.aclose()
        closed = await asyncio.gather(*writers, return_exceptions=True)
        assert all(isinstance(r, HistoryClosed | KeyError) for r in closed if r is not None)
        async with open_history(tmp_path / "history.db") as history:
            for memory_id, payload in memory.vector_store.rows.items():
                records = await history.get_history(memory_id)
                assert records[-1].new_memory == payload["data"]


@pytest.mark.once
class TestRestore:
    async def test_restoring_an_earlier_text(self, memory: AsyncMemory) -> None:
        memory_id = await add(memory, "tea", metadata={"mood": "calm"})
        made = dict(memory.vector_store.rows[memory_id])
        await memory.update(memory_id, "mate", **({"metadata": made} if IS_V1 else {}))
        record = await memory.restore(memory_id, to=1, actor_id="ann", role="user")
        history = await memory.history(memory_id)
        assert_chain(history)
        assert [r["new_memory"] for r in history] == ["tea", "mate", "tea"]
        assert history[-1] == record
        assert (record["event"], record["actor_id"], record["role"]) == ("UPDATE", "ann", "user")
        payload = memory.vector_store.rows[memory_id]
        assert payload.pop("updated_at") == record["updated_at"]
        assert payload == {key: made[key] for key in made if key != "updated_at"}

    async def test_the_embedding_is_that_of_the_text(self, memory: AsyncMemory) -> None:
        memory_id = await add(memory, "tea")
        await memory.update(memory_id, "mate")
        written: list[Any] = []
        memory.embedding_model.embed = lambda text, *_, **__: [text]
        memory.vector_store.update = lambda **given: written.append(given["vector"])
        await memory.restore(memory_id, to=1)
        assert written == [["tea"]]

    async def test_a_deleted_memory_is_there_again(self, memory: AsyncMemory) -> None:
        messages = [{"role": "user", "content": "tea", "name": "ann"}]
        result = await memory.add(messages, user_id="u", infer=False)
        memory_id = result["results"][0]["id"]
        made = dict(memory.vector_store.rows[memory_id])
        await memory.update(memory_id, "mate")
        await memory.delete(memory_id)
        given = {"user_id": "u", "mood": ["calm"]}
        record = await memory.restore(memory_id, to=1, metadata=given)
        assert (record["event"], record["old_memory"]) == ("ADD", None)
        payload = memory.vector_store.rows[memory_id]
        assert payload.pop("updated_at") == record["created_at"]
        assert payload.pop("mood") == ["calm"]
        assert payload == {key: made[key] for key in made if key != "updated_at"}
        assert (await memory.get(memory_id))["memory"] == "tea"
        await memory.update(memory_id, "water")
        texts = [record["new_memory"] for record in await memory.history(memory_id)]
        assert texts == ["tea", "mate", None, "tea", "water"]

    async def test_a_restore_does_not_change_the_owner_of_an_existing_memory(
        self, memory: AsyncMemory
    ) -> None:
        memory_id = await add(memory, "tea")
        await memory.update(memory_id, "mate")
        await memory.restore(memory_id, to=1, metadata={"user_id": "another", "mood": "calm"})
        payload = memory.vector_store.rows[memory_id]
        assert (payload["user_id"], payload["mood"]) == ("u", "calm")

    async def test_a_vector_store_that_failed_can_be_repaired_by_another_call(
        self, memory: AsyncMemory
    ) -> None:
        memory_id = await add(memory, "tea")
        await memory.delete(memory_id)
        store = memory.vector_store

        def fail(**_: Any) -> None:
            raise OSError("no vectors today")

        insert, store.insert = store.insert, fail
        with pytest.raises(OSError, match="no vectors") as failed:
            await memory.restore(memory_id, to=1)
        assert "restore again" in "".join(failed.value.__notes__)
        store.insert = insert
        record = await memory.restore(memory_id, to=1)
        assert store.rows[memory_id]["data"] == "tea"
        history = await memory.history(memory_id)
        assert [r["event"] for r in history] == ["ADD", "DELETE", "ADD"]
        assert history[-1] == record

    async def test_a_model_that_fails_changes_nothing(self, memory: AsyncMemory) -> None:
        memory_id = await add(memory, "tea")
        await memory.update(memory_id, "mate")

        def fail(*_: Any) -> None:
            raise OSError("no model today")

        memory.embedding_model.embed = fail
        with pytest.raises(OSError, match="no model"):
            await memory.restore(memory_id, to=1)
        assert len(await memory.history(memory_id)) == 2
        assert memory.vector_store.rows[memory_id]["data"] == "mate"

    async def test_a_restore_conflicts_with_another_processs_change(
        self, make_memory: MakeMemory, tmp_path: Path
    ) -> None:
        async with (
            make_memory() as memory,
            open_history(tmp_path / "history.db") as another,
        ):
            memory_id = await add(memory, "tea")
            await memory.update(memory_id, "mate")
            asked, answer_now = threading.Event(), threading.Event()

            def embed(*_: Any) -> list[float]:
                asked.set()
                answer_now.wait(LONG_S)
                return [0.0] * DIMENSIONS

            memory.embedding_model.embed = embed
            restoring = asyncio.create_task(memory.restore(memory_id, to=1))
            await asyncio.to_thread(asked.wait, LONG_S)
            await another.add_history(memory_id, "mate", "wine", "UPDATE")
            answer_now.set()
            with pytest.raises(HistoryConflict):
                await restoring
            assert memory.vector_store.rows[memory_id]["data"] == "mate"
            assert [r["new_memory"] for r in await memory.history(memory_id)][2:] == ["wine"]

    async def test_a_restore_takes_turns_with_updates_of_this_process(
        self, memory: AsyncMemory
    ) -> None:
        """There is no conflict: it waits for the records that they submitted before."""
        memory_id = await add(memory, "tea")
        await memory.update(memory_id, "mate")
        for _ in range(5):
            await asyncio.gather(
                *(memory.update(memory_id, f"text {n}") for n in range(10)),
                *(memory.restore(memory_id, to=1 + n % 2) for n in range(10)),
            )
        history = await memory.history(memory_id)
        assert_chain(history)
        assert memory.vector_store.rows[memory_id]["data"] == history[-1]["new_memory"]
        assert sum(record["new_memory"] in ("tea", "mate") for record in history) > 2

    async def test_a_restore_waits_for_records_submitted_before(
        self, make_memory: MakeMemory, tmp_path: Path
    ) -> None:
        """An update whose record is not durable yet comes first and does not conflict."""
        async with make_memory() as memory:
            memory_id = await add(memory, "tea")
            await memory.update(memory_id, "mate")
            holder = sqlite3.connect(tmp_path / "history.db", isolation_level=None)
            holder.execute("BEGIN IMMEDIATE")
            updating = asyncio.create_task(memory.update(memory_id, "water"))
            await until(lambda: memory.vector_store.rows[memory_id]["data"] == "water")
            restoring = asyncio.create_task(memory.restore(memory_id, to=1))
            for _ in range(10):  # long enough to read too early
                assert len(await memory.history(memory_id)) == 2
            holder.execute("COMMIT")
            holder.close()
            await updating
            assert (await restoring)["old_memory"] == "water"
            assert memory.vector_store.rows[memory_id]["data"] == "tea"
            assert_chain(await memory.history(memory_id))

    async def test_a_close_waits_for_a_restore(
        self, make_memory: MakeMemory, tmp_path: Path
    ) -> None:
        async with make_memory() as memory:
            memory_id = await add(memory, "tea")
            await memory.delete(memory_id)
            store = memory.vector_store
            store.gate = threading.Event()
            store.changed.clear()
            restoring = asyncio.create_task(memory.restore(memory_id, to=1))
            await asyncio.to_thread(store.changed.wait, LONG_S)
            closing = asyncio.create_task(memory.aclose())
            await asyncio.sleep(0)
            store.gate.set()
            assert (await restoring)["new_memory"] == "tea"
            await closing
        async with open_history(tmp_path / "history.db") as history:
            assert len(await history.get_history(memory_id)) == 3

    async def test_bad_restores_are_refused(self, memory: AsyncMemory) -> None:
        memory_id = await add(memory, "tea")
        bad: list[tuple[str, dict[str, Any], str]] = [
            ("unknown", {"to": 1}, "there is no history of 'unknown'"),
            (memory_id, {"to": 2}, "has 1 version, there is no version 2"),
            (memory_id, {"to": "1"}, "to must be a datetime"),
            (memory_id, {"to": 1, "metadata": "x"}, "metadata must be a mapping, not str"),
        ]
        for name, options, words in bad:
            with pytest.raises(InvalidInput, match=words):
                await memory.restore(name, **options)
        assert len(await memory.history(memory_id)) == 1

    @pytest.mark.skipif(IS_V1, reason="mem0 1.0 has no entities")
    async def test_entities_follow_the_text(
        self, memory: AsyncMemory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        memory_id = await add(memory, "tea")
        await memory.update(memory_id, "mate")
        returned: list[Any] = []

        async def note(*arguments: Any) -> None:
            returned.append(arguments)

        monkeypatch.setattr(memory, "_remove_memory_from_entity_store", note)
        monkeypatch.setattr(memory, "_link_entities_for_memory", note)
        await memory.restore(memory_id, to=1)
        assert returned == [(memory_id, {"user_id": "u"}), (memory_id, "tea", {"user_id": "u"})]

    def test_the_synchronous_memory(self, configured: Configured) -> None:
        memory = Memory.from_config(configured())
        store = make_instant(memory)
        result = memory.add("tea", user_id="u", infer=False)
        memory_id = result["results"][0]["id"]
        memory.update(memory_id, "mate")
        assert memory.restore(memory_id, to=1)["new_memory"] == "tea"
        assert store.rows[memory_id]["data"] == "tea"
        memory.delete(memory_id)
        record = memory.restore(memory_id, to=2, metadata={"user_id": "u"}, actor_id="ann")
        assert (record["event"], record["actor_id"]) == ("ADD", "ann")
        assert memory.history(memory_id)[-1] == record
        assert len(memory.history(memory_id)) == 5
        assert memory.get(memory_id)["memory"] == "mate"
        with pytest.raises(InvalidInput, match="there is no history"):
            memory.restore("unknown", to=1)
        memory.close()

    async def test_with_a_real_vector_store(
        self, configured: Configured, model: Model, tmp_path: Path
    ) -> None:
        async with AsyncMemory.from_config(configured()) as memory:
            kept, gone = await add(memory, "likes tea"), await add(memory, "likes mate")
            await memory.update(kept, "likes nothing")
            await memory.delete(gone)
            await memory.restore(kept, to=1)
            await memory.restore(gone, to=1, metadata={"user_id": "u"})
            listed = await memory.get_all(**({"user_id": "u"} if IS_V1 else {"filters": MINE}))
            found = {row["id"]: row["memory"] for row in listed["results"]}
            assert found == {kept: "likes tea", gone: "likes mate"}
            memory.vector_store.client.close()


MINE = {"user_id": "u"}


class TestLifecycle:
    async def test_a_manager_that_is_handed_in_is_shared_and_never_closed(
        self, make_memory: MakeMemory, tmp_path: Path
    ) -> None:
        async with open_history(tmp_path / "shared.db") as history:
            for _ in range(2):
                async with make_memory(history=history) as memory:
                    memory_id = await add(memory, "x")
                assert len(await history.get_history(memory_id)) == 1
            await history.add_history("m", None, "still open", "ADD")

    def test_a_memory_works_across_several_asyncio_runs(self, make_memory: MakeMemory) -> None:
        memory = make_memory()
        memory_id = asyncio.run(add(memory, "one"))
        asyncio.run(memory.update(memory_id, "two"))
        assert len(asyncio.run(memory.history(memory_id))) == 2
        memory.close()
        with pytest.raises(HistoryClosed):
            asyncio.run(memory.history(memory_id))

    def test_a_manager_of_another_loop_is_refused(
        self, make_memory: MakeMemory, tmp_path: Path
    ) -> None:
        async def opened() -> AsyncMemory:
            return make_memory(history=await open_history(tmp_path / "shared.db"))

        memory = asyncio.run(opened())
        with pytest.raises(HistoryError):
            asyncio.run(add(memory, "x"))

    @pytest.mark.parametrize("where", ["loop", "thread", "async with", "twice"])
    async def test_closing_in_any_way_keeps_what_was_accepted(
        self, make_memory: MakeMemory, tmp_path: Path, where: str
    ) -> None:
        memory = make_memory()
        adding = [asyncio.create_task(add(memory, str(n))) for n in range(50)]
        await asyncio.gather(*adding[:5])
        if where == "thread":
            await asyncio.to_thread(memory.close)
        elif where == "async with":
            async with memory:
                pass
        else:
            memory.close()
            if where == "twice":
                memory.close()
                await asyncio.to_thread(memory.close)
        results = await asyncio.gather(*adding, return_exceptions=True)
        kept = [result for result in results if isinstance(result, str)]
        assert all(isinstance(r, str | HistoryClosed) for r in results)
        assert len(kept) >= 5
        with pytest.raises(HistoryClosed):
            await memory.history("m")
        await memory.aclose()
        async with open_history(tmp_path / "history.db") as history:
            for memory_id in kept:
                assert len(await history.get_history(memory_id)) == 1

    async def test_a_store_that_cannot_be_opened_is_tried_again(
        self, make_memory: MakeMemory, tmp_path: Path
    ) -> None:
        (tmp_path / "history.db").write_bytes(b"this is no database at all, but a letter" * 9)
        async with make_memory() as memory:
            for _ in range(2):
                with pytest.raises(HistoryError, match="not a SQLite database"):
                    await add(memory, "x")
            (tmp_path / "history.db").unlink()
            await add(memory, "x")

    @pytest.mark.subprocess
    def test_a_program_that_does_not_close_ends(
        self, tmp_path: Path, configured: Configured
    ) -> None:
        source = f"""
import asyncio, json, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from async_history.mem0 import AsyncMemory
from tests.mem0.memories import add, make_instant
config = json.loads({json.dumps(json.dumps(configured()))})
memory = AsyncMemory.from_config(config)
make_instant(memory)
async def main():
    print(*[await add(memory, str(n)) for n in range(20)])
asyncio.run(main())
"""
        done = subprocess.run(
            [sys.executable, "-c", source], capture_output=True, text=True, timeout=LONG_S
        )
        assert done.returncode == 0, done.stderr
        ids = done.stdout.split()

        async def read() -> list[list[HistoryRecord]]:
            async with open_history(tmp_path / "history.db") as history:
                return [await history.get_history(memory_id) for memory_id in ids]

        assert [len(records) for records in asyncio.run(read())] == [1] * 20

    async def test_outside_of_an_operation_db_says_what_to_use(self, memory: AsyncMemory) -> None:
        with pytest.raises(HistoryError, match=r"memory\.history"):
            memory.db.get_history("m")


@pytest.mark.once
@pytest.mark.parametrize("kind", [AsyncMemory, Memory])
def test_options_of_the_history_are_not_part_of_mem0s_configuration(
    kind: type[Any], configured: Configured, tmp_path: Path
) -> None:
    """mem0 ignores unknown options: a history with `keys` there would be in clear."""
    options = (*HistoryOptions.__annotations__, "history", "threads", "turns_between_processes")
    before = sorted(tmp_path.iterdir())
    for option in options:
        with pytest.raises(InvalidInput, match=f"'{option}' is an option of the history"):
            kind.from_config({**configured(), option: None})
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.once
class TestSynchronousMemory:
    """mem0's `Memory`, whose calls wait for the disk."""

    @pytest.fixture
    def sync_memory(self, configured: Configured) -> Iterator[Memory]:
        memory = Memory.from_config(configured())
        make_instant(memory)
        yield memory
        memory.close()
        memory.close()

    def test_its_history_is_kept(self, sync_memory: Memory, tmp_path: Path) -> None:
        added = sync_memory.add("likes tea", user_id="u", infer=False)
        memory_id = added["results"][0]["id"]
        sync_memory.update(memory_id, "likes mate")
        sync_memory.delete(memory_id)
        history = sync_memory.history(memory_id)
        assert_chain(history)
        assert [record["event"] for record in history] == ["ADD", "UPDATE", "DELETE"]
        assert (tmp_path / "history.db").exists()

    def test_a_reset_keeps_the_history_open(
        self, sync_memory: Memory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = sync_memory.vector_store
        monkeypatch.setattr("mem0.memory.main.VectorStoreFactory.create", lambda *_: store)
        added = sync_memory.add("x", user_id="u", infer=False)
        sync_memory.reset()
        assert sync_memory.history(added["results"][0]["id"]) == []
        added = sync_memory.add("y", user_id="u", infer=False)
        assert len(sync_memory.history(added["results"][0]["id"])) == 1

    def test_another_store_by_url(self, configured: Configured, tmp_path: Path) -> None:
        memory = Memory.from_config(configured(), history=f"sqlite:///{tmp_path}/elsewhere.db")
        make_instant(memory)
        memory.add("x", user_id="u", infer=False)
        memory.close()
        assert (tmp_path / "elsewhere.db").exists()
        assert not (tmp_path / "history.db").exists()
        with pytest.raises(HistoryClosed):
            memory.history("m")

    async def test_a_manager_is_refused(self, configured: Configured) -> None:
        async with open_history("memory://") as history:
            with pytest.raises(InvalidInput, match="URL"):
                Memory(MemoryConfig(**configured()), history=history)  # type: ignore[arg-type]

    @pytest.mark.parametrize("kind", [AsyncMemory, Memory])
    @pytest.mark.parametrize("path", [5, None, b"history.db"])
    def test_a_path_object_without_a_path_is_refused(
        self, kind: Any, path: Any, configured: Configured, tmp_path: Path
    ) -> None:
        """It is refused before mem0 makes anything."""
        odd = type("OddPath", (), {"__fspath__": lambda _: path})()
        with pytest.raises(InvalidInput, match="path must be text"):
            kind.from_config(configured(), history=odd)
        with pytest.raises(InvalidInput, match="path must be text"):
            kind(MemoryConfig(**configured()), history=odd)
        assert not list(tmp_path.iterdir())


@pytest.mark.once
class TestDocumentation:
    """The examples of the documentation, and its application with its real lifespan."""

    @staticmethod
    def scope_of(name: str) -> dict[str, Any]:
        """Return the names that an example defines."""
        scope: dict[str, Any] = {"__name__": name}
        exec(example(name), scope)
        return scope

    async def test_restoring(self, memory: AsyncMemory) -> None:
        undo = self.scope_of("mem0-restore")["undo"]
        memory_id, deleted_id = await add(memory, "tea"), await add(memory, "a")
        await memory.update(memory_id, "mate")
        await memory.update(deleted_id, "b")
        await memory.delete(deleted_id)
        await undo(memory, memory_id, deleted_id)
        rows = memory.vector_store.rows
        assert rows[memory_id]["data"] == "tea"
        assert rows[deleted_id]["data"] == "b"
        assert rows[deleted_id]["user_id"] == "u"

    async def test_a_history_that_was_not_written(
        self, memory: AsyncMemory, tmp_path: Path
    ) -> None:
        memory_id = await add(memory, "tea")
        connection = sqlite3.connect(tmp_path / "history.db")
        connection.execute(
            "CREATE TRIGGER no BEFORE INSERT ON history BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
        connection.close()
        async with open_history("memory://") as later:
            await self.scope_of("mem0-not-written")["update"](memory, later, memory_id, "mate")
            (record,) = await later.get_history(memory_id)
        assert (record.old_memory, record.new_memory) == ("tea", "mate")

    def test_the_one_line(self, configured: Configured) -> None:
        assert self.scope_of("mem0-import")["AsyncMemory"] is AsyncMemory
        config = MemoryConfig(**configured())
        for new_memory in ("new_memory", "new_memory_on_a_server"):
            memory = self.scope_of("mem0-memory")[new_memory](config)
            assert isinstance(memory, AsyncMemory)
            memory.close()
            memory.vector_store.client.close()

    def test_the_application(
        self, configured: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        scope = self.scope_of("fastapi")
        scope["config"] = MemoryConfig(**configured())
        with TestClient(scope["app"]) as client:
            added = client.post("/users/ann/memories", params={"text": "likes tea"}).json()
            (memory,) = added["results"]
            (record,) = client.get(f"/memories/{memory['id']}/history").json()
        assert (record["event"], record["new_memory"]) == ("ADD", "likes tea")
        assert sorted(path.name for path in tmp_path.glob("history.db*")) == ["history.db"]


@pytest.fixture(params=stores("file", "memory", "postgres"))
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return url_of(request.param, request, tmp_path)


@pytest.mark.once
class TestWholeWorkflow:
    """After a long conversation the history has every change of the vector store."""

    async def test_history_and_vector_store_agree(
        self, configured: Configured, model: Model, store_url: str
    ) -> None:
        held: dict[str, list[str | None]] = {}
        async with AsyncMemory.from_config(configured(), history=store_url) as memory:
            watch(memory.vector_store, held)
            if IS_V1:
                await converse_v1(memory, model)
            else:
                await converse_v2(memory, model)
            rebuilt: dict[str, str] = {}
            for memory_id, texts in held.items():
                history = await memory.history(memory_id)
                assert_chain(history)
                assert [record["new_memory"] for record in history] == texts
                if texts[-1] is not None:
                    rebuilt[memory_id] = texts[-1]
            listed = memory.vector_store.list(**{"limit" if IS_V1 else "top_k": 1_000})[0]
            assert {str(row.id): row.payload["data"] for row in listed} == rebuilt
            assert len(rebuilt) >= 5
            assert sum(len(texts) for texts in held.values()) >= 30
            memory.vector_store.client.close()


def watch(store: Any, held: dict[str, list[str | None]]) -> None:
    """Note every text that a vector store holds for each memory, as it changes."""
    insert, update, delete = store.insert, store.update, store.delete

    def watched_insert(vectors: Any, payloads: Any = None, ids: Any = None) -> Any:
        result = insert(vectors=vectors, payloads=payloads, ids=ids)
        for memory_id, payload in zip(ids, payloads, strict=True):
            held.setdefault(memory_id, []).append(payload["data"])
        return result

    def watched_update(vector_id: Any, vector: Any = None, payload: Any = None) -> Any:
        result = update(vector_id=vector_id, vector=vector, payload=payload)
        if vector is not None:
            held[vector_id].append(payload["data"])
        return result

    def watched_delete(vector_id: Any) -> Any:
        result = delete(vector_id=vector_id)
        held[vector_id].append(None)
        return result

    store.insert, store.update, store.delete = watched_insert, watched_update, watched_delete


async def converse_v2(memory: AsyncMemory, model: Model) -> None:
    """Facts that a model infers, one batch a message; later refined, contradicted, deleted."""
    kept: list[str] = []
    for round_ in range(8):
        texts = [f"fact {round_}.{n} about tea" for n in range(3)]
        model.script = answer({"memory": [{"text": text} for text in texts]})
        result = await memory.add(f"message {round_}", user_id="u", metadata={"round": round_})
        kept += [added["id"] for added in result["results"]]
        await memory.update(kept[-1], f"refined {round_}")
        await asyncio.gather(
            memory.update(kept[-2], f"contradicted {round_}"),
            memory.update(kept[-2], f"contradicted again {round_}"),
        )
        await memory.delete(kept.pop(-3))
    model.script = answer({"memory": []})
    await memory.add("nothing new", user_id="u")
    kept.append(await add(memory, "said as it is"))
    await memory.update(kept[-1], "and changed")


async def converse_v1(memory: AsyncMemory, model: Model) -> None:
    """Facts about which the model decides: ADD, UPDATE, DELETE, NONE, one memory twice."""
    for round_ in range(10):
        decisions: list[dict[str, str]] = [
            {"id": "9", "text": f"new {round_}.{n}", "event": "ADD"} for n in range(3)
        ]
        if round_ >= 2:
            decisions += [
                {"id": "0", "text": f"refined {round_}", "event": "UPDATE"},
                {"id": "0", "text": f"refined again {round_}", "event": "UPDATE"},
                {"id": "1", "text": f"contradicted {round_}", "event": "UPDATE"},
                {"id": "2", "text": "left alone", "event": "NONE"},
                {"id": "3", "text": "gone", "event": "DELETE"},
            ]
        model.script = answer({"facts": [f"fact {round_}"]}, {"memory": decisions})
        await memory.add(f"message {round_}", user_id="u", agent_id="a")


@pytest.mark.once
class TestRelativePath:
    """The program changes its folder before a memory's first use, and later."""

    @pytest.fixture
    def folders(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
        given, other = tmp_path / "given", tmp_path / "other"
        given.mkdir()
        other.mkdir()
        monkeypatch.chdir(given)
        return given, other

    @pytest.mark.parametrize("history", ["history.db", "sqlite:///history.db", Path("history.db")])
    def test_a_relative_path_of_async_memory(
        self, make_memory: MakeMemory, folders: tuple[Path, Path], history: Any
    ) -> None:
        given, other = folders
        memory = make_memory(history=history)
        os.chdir(other)

        async def use() -> None:
            await add(memory, "tea")
            await memory.aclose()

        asyncio.run(use())
        assert [each.name for each in given.iterdir()] == ["history.db"]
        assert not list(other.iterdir())

    def test_a_relative_path_of_memory(
        self, configured: Configured, folders: tuple[Path, Path]
    ) -> None:
        given, other = folders
        memory = Memory.from_config(configured(), history="history.db")
        os.chdir(other)
        make_instant(memory)
        asyncio.run(asyncio.to_thread(memory.add, "tea", user_id="u", infer=False))
        memory.reset()
        os.chdir(given)
        memory.close()
        assert (given / "history.db").exists()
        assert not list(other.iterdir())


_CALLS = {
    "add": ("tea", {"user_id": "u"}),
    "get": ("memory-1", {}),
    "get_all": (None, {"user_id": "u"} if IS_V1 else {"filters": {"user_id": "u"}}),
    "search": ("tea", {"user_id": "u"} if IS_V1 else {"filters": {"user_id": "u"}}),
    "delete": ("memory-1", {}),
    "delete_all": (None, {"user_id": "u"}),
    "history": ("memory-1", {}),
    "reset": (None, {}),
    "close": (None, {}),
}
"""Calls of mem0: a first argument, and the others by name."""


def _outcome_without_constructor(
    kind: Any, name: str, call: tuple[str | None, dict[str, Any]], folder: Path
) -> tuple[str, Any]:
    """Return the outcome of a call on an object whose constructor did not run, and the object."""
    memory = kind.__new__(kind)
    parts = ("db", "vector_store", "llm", "embedding_model", "_entity_store", "graph")
    for part in (*parts, "custom_instructions", "collection_name"):
        setattr(memory, part, MagicMock())
    memory.config = MemoryConfig(history_db_path=str(folder / "history.db"))
    memory.enable_graph, memory.reranker, memory.api_version = False, None, "v1.1"
    memory.vector_store.list.return_value = [[]]
    memory.vector_store.get.return_value = None
    memory.db.get_last_messages.return_value = []
    memory.llm.generate_response.return_value = '{"memory": [], "facts": []}'
    first, options = call

    with contextlib.ExitStack() as stack:
        for factory in ("VectorStoreFactory", "EmbedderFactory", "LlmFactory"):
            stack.enter_context(patch.object(mem0_main, factory))
        try:
            result = getattr(memory, name)(*([] if first is None else [first]), **options)
            if asyncio.iscoroutine(result):
                result = asyncio.run(result)
        except Exception as error:
            return repr(error), memory
    return type(result).__name__, memory


class TestAsMem0sOwnTestsUseIt:
    @pytest.mark.parametrize("kind", [AsyncMemory, Memory])
    def test_an_object_without_its_constructor_uses_what_is_assigned(self, kind: Any) -> None:
        memory = kind.__new__(kind)
        assert memory.db is None
        memory.db = assigned = MagicMock()
        assert memory.db is assigned
        memory.close()
        assigned.close.assert_called_once_with()
        memory.close()

    @pytest.mark.parametrize("kind", [AsyncMemory, Memory])
    def test_an_object_without_its_constructor_answers_every_call_as_mem0s(
        self, kind: Any, tmp_path: Path
    ) -> None:
        of_mem0 = next(each for each in kind.__mro__ if each.__module__.startswith("mem0."))
        for name, arguments in _CALLS.items():
            expected, _ = _outcome_without_constructor(of_mem0, name, arguments, tmp_path)
            outcome, memory = _outcome_without_constructor(kind, name, arguments, tmp_path)
            assert outcome == expected, name
            if name == "reset":
                assert memory.db.db_path == str(tmp_path / "history.db")
            memory.close()

    @pytest.mark.parametrize("kind", [AsyncMemory, Memory])
    def test_every_attribute_can_be_patched(self, kind: Any, configured: Configured) -> None:
        of_mem0 = next(each for each in kind.__mro__ if each.__module__.startswith("mem0."))
        plain = of_mem0.from_config(configured())
        fixed = {name for name in dir(plain) if isinstance(getattr(type(plain), name, 0), property)}
        names = {name for name in dir(plain) if not name.startswith("__")} - fixed
        plain.vector_store.client.close()
        plain.close()
        memory = kind.from_config(configured())
        assert {"db", "vector_store", "add", "_add_to_vector_store", "_create_memory"} <= names
        for name in sorted(names):
            before = getattr(memory, name)
            with patch.object(memory, name) as outer:
                with patch.object(memory, name) as inner:
                    assert getattr(memory, name) is inner
                assert getattr(memory, name) is outer
            assert type(getattr(memory, name)) is type(before)
        assert memory._history_db is OWN_RECORDER
        with patch.object(kind, "_add_to_vector_store") as replaced:
            assert memory._add_to_vector_store is replaced
        del memory.db
        assert not hasattr(memory, "db")
        memory.close()

    async def test_calls_of_the_history_outside_of_an_operation_write(
        self, make_memory: MakeMemory
    ) -> None:
        memory = make_memory()
        memory.db.add_history("m", None, "tea", "ADD")
        memory.db.batch_add_history(
            [{"memory_id": "m", "old_memory": "tea", "new_memory": "rum", "event": "UPDATE"}]
        )
        assert len(await memory.history("m")) == 2  # which waits for them
        memory.db.save_messages([{"role": "user", "content": "hello"}], "scope")
        await memory.aclose()  # waits too
        async with make_memory() as again:
            assert [each["new_memory"] for each in await again.history("m")] == ["tea", "rum"]
            messages = await again._history_state().manager.get_last_messages("scope")
            assert [each.content for each in messages] == ["hello"]

    async def test_its_connection_reads_the_file(
        self, make_memory: MakeMemory, tmp_path: Path
    ) -> None:
        memory = make_memory(history=tmp_path / "read.db")

        def texts() -> list[tuple[str]]:
            connection: sqlite3.Connection = memory.db.connection
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                connection.execute("DELETE FROM history")
            return connection.execute("SELECT new_memory FROM history").fetchall()

        async with memory:
            await add(memory, "tea")
            assert await asyncio.to_thread(texts) == [("tea",)]
            await memory.reset()
            assert await asyncio.to_thread(texts) == []
        assert memory.db.connection is None
