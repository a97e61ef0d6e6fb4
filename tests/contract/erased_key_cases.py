"""Keys of erased owners, and keys that several managers use, on any encrypted store."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

import pytest

from async_history import Owner
from async_history._core.encryption.key_statements import StoredKey, owner_digests
from async_history._core.encryption.stored_texts import StoredTexts, TextTransaction
from async_history._core.removing.erase_transaction import note
from async_history.errors import KeyMissing
from tests.support.encrypted_cases import ANN, BOB, texts
from tests.support.encrypted_stores import Open
from tests.support.keys import ring
from tests.support.patience import LONG_S

T = TypeVar("T")


async def in_transaction(history: Any, work: Callable[[TextTransaction], Awaitable[T]]) -> T:
    done: T = await history.store.encryption.texts.in_transaction(work)
    return done


async def sealed(one: TextTransaction, memory_id: str) -> StoredTexts:
    """Return the texts of a memory's only record as they are stored."""
    page = await one.sealed_records(None, 100)
    (found,) = [row for row in page.rows if row.memory_id == memory_id]
    return found


async def keys_of_ann(one: TextTransaction) -> list[StoredKey]:
    owner, *_ = owner_digests(Owner(**ANN))
    return await one.table.of_owners([owner])


async def masters(one: TextTransaction) -> set[str]:
    """Return the master keys that wrap the keys of the store."""
    return {key.master for key in await one.table.wrapping()}


class ErasedKeyCases:
    """Erased and rotated keys. The fixture `open_store` opens managers of one store."""

    async def test_an_erased_owners_keys_are_destroyed(self, open_store: Open) -> None:
        """Even if another manager holds a lease of them. An owner who comes back gets a new key."""
        one = ring("one")
        async with open_store(keys=one) as history, open_store(keys=one) as other:
            for manager, name in ((history, "a"), (other, "b")):
                await manager.add_history(name, None, "before", "ADD", owner=ANN)
                await manager.add_history(f"{name} of bob", None, "mate", "ADD", owner=BOB)
                await manager.save_messages([{"role": "user", "content": "x"}], "user_id=ann")
            before = await in_transaction(history, partial(sealed, memory_id="a"))
            report = await history.erase(**ANN, reason="asked")
            assert any("data keys of what was erased" in one for one in report.remains)
            for manager, name in ((other, "c"), (history, "d")):
                await manager.add_history(name, None, "after", "ADD", owner=ANN)
                await manager.save_messages([{"role": "user", "content": "y"}], "user_id=ann")
        async with open_store(keys=one) as history:
            assert await texts(history, "a") == await texts(history, "b") == [None]
            assert await texts(history, "c") == await texts(history, "d") == ["after"]
            assert await texts(history, "b of bob") == ["mate"]
            messages = await history.get_last_messages("user_id=ann")
            assert [message.content for message in messages] == ["y", "y"]

            async def bring_back(one: TextTransaction) -> None:
                after = await sealed(one, "c")
                await one.replace_records([after._replace(new_memory=before.new_memory)])

            # A text of a backup is not readable with today's keys.
            await in_transaction(history, bring_back)
            with pytest.raises(KeyMissing, match="destroyed"):
                await history.get_history("c")

    async def test_an_interrupted_erasure_leaves_everything_readable(
        self, open_store: Open
    ) -> None:
        async with open_store(keys=ring("one")) as history:
            await history.add_history("m", None, "tea", "ADD", owner=ANN)
            eraser: Any = history.store.eraser
            await eraser.in_transaction(partial(note, [("user_id", "ann")], datetime.now(UTC)))
            assert await texts(history, "m") == ["tea"]
        async with open_store(keys=ring("one")) as history:
            assert await texts(history, "m") == ["tea"]
            await history.add_history("n", None, "mate", "ADD", owner=ANN)
            assert await in_transaction(history, keys_of_ann)
            assert (await history.erase(**ANN, reason="asked")).records == 2
            assert not await in_transaction(history, keys_of_ann)

    async def test_an_actors_texts_are_found_in_others_records(self, open_store: Open) -> None:
        """They are compared as texts, not as they are stored."""
        async with open_store(keys=ring("one")) as history:
            await history.add_history("m", None, "secret", "ADD", actor_id="ann")
            await history.add_history("m", "secret", "other", "UPDATE", actor_id="bob")
            await history.add_history("m", "other", "secret", "UPDATE", actor_id="bob")
            await history.erase(actor_id="ann", reason="asked")
            found = [(one.old_memory, one.new_memory) for one in await history.get_history("m")]
        assert found == [(None, None), (None, "other"), ("other", None)]

    async def test_other_managers_work_while_keys_are_rotated(self, open_store: Open) -> None:
        async with (
            open_store(keys=ring("old", "new")) as other,
            open_store(keys=ring("new", "old")) as history,
        ):
            await history.add_history("m", None, "tea", "ADD", owner=ANN)
            stop, wrote = asyncio.Event(), asyncio.Event()

            async def write() -> int:
                count = 0
                while not stop.is_set():
                    # Of ever more owners, there would be ever more keys to wrap.
                    owner: Any = {"user_id": f"owner {count % 20}"}
                    await other.add_history(f"n{count}", None, str(count), "ADD", owner=owner)
                    count += 1
                    wrote.set()
                return count

            writing = asyncio.create_task(write())
            for _ in range(2):
                wrote.clear()
                await asyncio.wait_for(wrote.wait(), LONG_S)
                await history.encryption.rotate_keys()
            stop.set()
            count = await writing
            assert await in_transaction(history, masters) == {"new"}
        async with open_store(keys=ring("new")) as history:
            assert await texts(history, "m") == ["tea"]
            for number in range(count):
                assert await texts(history, f"n{number}") == [str(number)]
