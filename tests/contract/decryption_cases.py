"""Decrypting a history in place, on any store that can: during writes, and interrupted."""

import asyncio
from typing import Any

import pytest

from async_history import HistoryManager
from async_history._core.encryption.key_statements import OFF
from async_history.errors import KeyMissing, StorageCorrupt
from tests.support.encrypted_stores import (
    ANN,
    FEW,
    Open,
    all_of,
    changes,
    contents,
    fill,
    until_turned_off,
)
from tests.support.keys import ring
from tests.support.limits import limited


async def sealed_under(texts: Any, memory_id: str) -> set[str]:
    async def find(one: Any) -> set[str]:
        page = await one.sealed_records(None, 1_000)
        return {row.new_memory[5:21] for row in page.rows if row.memory_id == memory_id}

    found: set[str] = await texts.in_transaction(find)
    return found


class DecryptionCases:
    """Decrypting in place. The fixture `open_store` opens managers of one store, with options."""

    async def test_everything_is_decrypted_while_others_write(self, open_store: Open) -> None:
        seen: list[tuple[int, int]] = []
        async with open_store(keys=ring("one")) as other:
            async with limited(open_store(keys=ring("one")), texts=FEW) as history:
                records = await fill(history)

                async def write(by: HistoryManager, name: str) -> None:
                    for number in range(10):
                        await by.add_history(f"{name}{number}", None, name, "ADD", owner=ANN)
                        await by.batch_add_history(changes(2, f"{name}{number}"))
                        await by.save_messages([{"content": name}], f"user_id={name}")

                decrypting = history.encryption.decrypt(on_progress=lambda *both: seen.append(both))
                report, *_ = await asyncio.gather(
                    decrypting, write(history, "own"), write(other, "other")
                )
                assert report.records >= 12
                assert report.messages >= 2
                assert seen[-1][0] == report.records
                # Both now write in clear.
                await write(history, "own later")
                await write(other, "other later")
                found = await all_of(history)
                assert [one for one in found if one.memory_id.startswith("m")] == records
                assert await all_of(other) == found
                codes = {one.code for one in (await other.stats()).warnings}
                assert "clear-records" not in codes
                last = (await history.operations())[-1]
                assert (last.kind, last.state, last.records) == (
                    "decrypt",
                    "finished",
                    report.records,
                )
            async with open_store() as history:
                assert await all_of(history) == found
                assert await contents(history) == ["hello"] * 2
                assert await history.count_history(cause={"run_id": "r"}) == 6 + 40
                assert await history.count_history(user_id="ann") == 3 + 40 + 40

    async def test_encryption_that_is_turned_on_again_has_new_keys(self, open_store: Open) -> None:
        async with open_store(keys=ring("one")) as history:
            records = await fill(history)
            await history.encryption.decrypt()
        async with open_store(keys=ring("two")) as history:
            assert await all_of(history) == records
            await history.add_history("new", None, "sealed", "ADD")
            report = await history.encryption.encrypt()
            assert (report.records, report.clear) == (12, 0)
            await history.encryption.rotate_keys()
            last = (await history.operations())[-1]
            assert (last.kind, last.state, last.arguments) == (
                "rekey",
                "finished",
                {"master_key": "two"},
            )
        with pytest.raises(KeyMissing):
            await open_store()
        async with open_store(keys=ring("two")) as history:
            assert (await all_of(history))[:12] == records
            await history.encryption.decrypt()
        async with open_store() as history:
            assert (await all_of(history))[:12] == records

    async def test_an_interrupted_decryption_can_be_completed_or_reversed(
        self, open_store: Open
    ) -> None:
        async with open_store(keys=ring("one")) as history:
            records = await fill(history)
            await until_turned_off(history)
        with pytest.raises(KeyMissing):
            await open_store()
        async with open_store(keys=ring("one")) as history:
            await history.add_history("clear", None, "in clear", "ADD")
            await history.encryption.rotate_keys()
            assert (await all_of(history))[:12] == records
            report = await history.encryption.encrypt()
            assert report.records == 1
            await history.add_history("sealed", None, "again", "ADD")
            warnings = {one.code for one in (await history.stats()).warnings}
            assert "clear-records" not in warnings
            await until_turned_off(history)
        async with open_store(keys=ring("one")) as history:
            assert (await history.encryption.decrypt()).records == 14
        async with open_store() as history:
            assert (await all_of(history))[:12] == records

    async def test_a_text_that_cannot_be_opened_stops_it_and_changes_nothing_else(
        self, open_store: Open
    ) -> None:
        async with open_store(keys=ring("one")) as history:
            await fill(history)
            texts: Any = history.store
            texts = texts.encryption.texts
            (lost,) = await sealed_under(texts, "m1")
            await texts.in_transaction(lambda one: one.table.remove([lost]))
        async with open_store(keys=ring("one")) as history:
            with pytest.raises(KeyMissing, match=lost):
                await history.encryption.decrypt()
            assert (await history.operations())[-1].error == "KeyMissing"
            assert len(await history.get_history("m2")) == 3
            await history.erase(memory_ids=["m1"], session_scopes=["user_id=ann"], reason="lost")
            await history.encryption.decrypt()
        async with open_store() as history:
            assert (await history.get_history("m2"))[0].new_memory == "text 2"

    async def test_a_forged_mark_does_not_turn_encryption_off(self, open_store: Open) -> None:
        """The mark is made with the store's keys. A row that was made without them is refused."""
        async with open_store(keys=ring("one")) as history:
            await fill(history)
            store: Any = history.store
            keys, texts = store.encryption.keys, store.encryption.texts

            async def forge(one: Any) -> None:
                (index,) = await one.table.of_owners(["index"])
                await one.table.add([index._replace(id=OFF, owner=OFF)])
                await one.retire_keys()

            await texts.in_transaction(forge)
            with pytest.raises(StorageCorrupt, match="key off is damaged"):
                await history.add_history("m", None, "secret", "ADD")
            assert not keys.is_off

    async def test_removed_keys_encrypt_nothing(self, open_store: Open) -> None:
        """A manager that was idle meanwhile writes in clear. Without the mark it is refused."""
        async with open_store(keys=ring("one")) as idle:
            await fill(idle)
            async with open_store(keys=ring("one")) as history:
                await history.encryption.decrypt()
            await idle.add_history("m0", None, "later", "ADD", owner=None)
            async with open_store() as history:
                assert (await history.get_history("m0"))[-1].new_memory == "later"
        async with open_store(keys=ring("one")) as idle:
            await idle.add_history("m", None, "sealed", "ADD")
            store: Any = idle.store

            async def empty(one: Any) -> None:
                await one.end()

            await store.encryption.texts.in_transaction(empty)
            with pytest.raises(KeyMissing, match="no keys any more"):
                await idle.add_history("m", None, "lost", "ADD")

    async def test_a_manager_that_recorded_nothing_since_a_rotation_must_open_again(
        self, open_store: Open
    ) -> None:
        """A manager that did has the keys of the mark, and writes in clear."""
        async with open_store(keys=ring("one")) as idle, open_store(keys=ring("one")) as other:
            async with open_store(keys=ring("one")) as history:
                await history.encryption.rotate_keys()
                await other.add_history("m", None, "sealed", "ADD")
                await history.encryption.decrypt()
            await other.add_history("m", "sealed", "in clear", "UPDATE")
            with pytest.raises(KeyMissing, match="Open it again"):
                await idle.add_history("m", "in clear", "never", "UPDATE")
        async with open_store() as history:
            found = [one.new_memory for one in await history.get_history("m")]
            assert found == ["sealed", "in clear"]
