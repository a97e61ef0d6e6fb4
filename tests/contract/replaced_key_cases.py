"""Replacing data keys, on any store that can: during writes, and interrupted."""

import asyncio
from typing import Any

import pytest

from async_history._core.encryption.stored_texts import TextLimits
from async_history.errors import StorageError
from tests.support.encrypted_stores import (
    FEW,
    Open,
    all_of,
    changes,
    contents,
    cut_off,
    fill,
    key_ids,
    until_complete,
    until_turned_off,
)
from tests.support.keys import ring
from tests.support.limits import limited
from tests.support.parts import Places, in_parts


class ReplacedKeyCases:
    """Replacing data keys. The fixture `open_store` opens managers of one store, with options."""

    async def test_all_texts_get_new_keys_while_others_write(self, open_store: Open) -> None:
        seen: list[tuple[int, int]] = []
        async with (
            open_store(keys=ring("one")) as other,
            limited(open_store(keys=ring("one")), texts=FEW) as history,
        ):
            records = await fill(history)
            before = await key_ids(history)

            async def write(by: Any, name: str) -> None:
                for number in range(10):
                    await by.add_history(
                        f"{name}{number}", None, name, "ADD", owner={"user_id": "ann"}
                    )
                    await by.batch_add_history(changes(2, f"{name}{number}"))
                    await by.save_messages([{"content": name}], f"user_id={name}")

            done, *_ = await asyncio.gather(
                history.encryption.replace_data_keys(on_progress=lambda *both: seen.append(both)),
                write(history, "own"),
                write(other, "other"),
            )
            assert done.data_keys >= len(before["used"]) == 2
            assert done.records >= 12
            assert done.messages >= 2
            assert seen[-1][0] == done.records
            after = await key_ids(history)
            assert not before["used"] & after["used"]
            assert after["used"] == after["there"]
            found = await all_of(history)
            assert [one for one in found if one.memory_id.startswith("m")] == records
            assert await all_of(other) == found
            last = (await history.operations())[-1]
            assert (last.kind, last.state, last.records) == ("rekey", "finished", done.records)
            assert last.arguments == {"data_keys": True}
        async with open_store(keys=ring("one")) as history:
            assert await all_of(history) == found
            assert await contents(history) == ["hello"] * 2
            assert await history.count_history(cause={"run_id": "r"}) == 6 + 20
            assert (await history.encryption.encrypt()).records == 0

    @pytest.mark.parametrize("count", [1, 2])
    async def test_the_next_record_has_an_existing_key(self, open_store: Open, count: int) -> None:
        """After another manager replaced the keys. SQLite has a statement for lone records."""
        async with (
            open_store(keys=ring("one")) as other,
            open_store(keys=ring("one")) as history,
        ):
            for turn in range(4):
                if turn == 3:
                    await other.encryption.replace_data_keys()
                names = [f"{turn} {number}" for number in range(count)]
                await history.batch_add_history(
                    [{"memory_id": name, "new_memory": name, "event": "ADD"} for name in names]
                )
            found = await key_ids(history)
            assert found["used"] == found["there"]
            assert [one.new_memory for one in await all_of(other)][-count:] == names

    async def test_only_an_owners_keys_are_replaced(self, open_store: Open) -> None:
        async with open_store(keys=ring("one")) as history:
            records = await fill(history)
            before = await key_ids(history)
            done = await history.encryption.replace_data_keys(user_id="ann")
            assert (done.data_keys, done.records, done.messages) == (1, 3, 2)
            after = await key_ids(history)
            assert len(before["used"] & after["used"]) == 1
            assert await all_of(history) == records
            arguments = (await history.operations())[-1].arguments
            assert set(arguments) == {"data_keys", "user_id_sha256"}
            again = await history.encryption.replace_data_keys(user_id="nobody")
            assert (again.data_keys, again.records) == (0, 0)
            # An erasure of the owner removes the new key too.
            await history.erase(user_id="ann", reason="asked")
            assert len((await key_ids(history))["there"]) == 1

    @in_parts(5, nightly=1)
    async def test_an_interrupted_replacement_is_completed(
        self, open_store: Open, places: Places
    ) -> None:
        """Cancelled after each of its transactions in turn."""
        async with open_store(keys=ring("one")) as history:
            records = await fill(history)

        async def is_interrupted(stop_after: int) -> bool:
            nonlocal records
            async with limited(open_store(keys=ring("one")), texts=TextLimits(rows=4)) as history:
                is_cut_off = await cut_off(stop_after, history, "replace_data_keys")
                assert await all_of(history) == records
                await history.add_history("m0", None, "x", "ADD", id=f"later {stop_after}")
                records = await all_of(history)
            async with open_store(keys=ring("one")) as history:
                assert await all_of(history) == records
                await history.encryption.replace_data_keys()
                assert await all_of(history) == records
                assert len((await key_ids(history))["there"]) == 2
            return is_cut_off

        await until_complete(places, is_interrupted)

    async def test_it_is_refused_while_encryption_is_being_turned_off(
        self, open_store: Open
    ) -> None:
        async with open_store(keys=ring("one")) as history:
            await fill(history)
            await until_turned_off(history)
            with pytest.raises(StorageError, match="being turned off"):
                await history.encryption.replace_data_keys()

    async def test_records_that_were_read_ahead_are_read_again_if_their_keys_are_gone(
        self, open_store: Open
    ) -> None:
        async with (
            open_store(keys=ring("one")) as other,
            open_store(keys=ring("one")) as history,
        ):
            names = ["ann", "bob", "cid"]
            for name in names:
                await other.add_history(name, None, f"of {name}", "ADD", owner={"user_id": name})
            pages = history.query_history(memory_id=names, page_size=1).pages()
            found = [*(await anext(pages)).records, *(await anext(pages)).records]
            await other.encryption.replace_data_keys()
            found += [record async for page in pages for record in page.records]
            assert [record.new_memory for record in found] == ["of ann", "of bob", "of cid"]
