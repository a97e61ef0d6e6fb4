"""Lifecycle of a manager: loops, cancellation, resets, and closing at any moment."""

import asyncio
import random
from collections.abc import Callable

import pytest

from async_history import HistoryClosed, HistoryManager, WrongLoop
from async_history.backend import Backend, CommitSignal, Store
from async_history.testing.fixtures import Cases, OpenStore


class LifecycleCases(Cases):
    """The loop and process of a manager, and its end; also for a backend that stores nothing."""

    async def test_another_loop_is_refused_and_never_hangs(self, open_store: OpenStore) -> None:
        async with open_store() as history:

            def elsewhere() -> list[type[BaseException] | None]:
                async def calls() -> list[type[BaseException] | None]:
                    errors: list[type[BaseException] | None] = []
                    for call in (
                        history.add_history("m", None, "x", "ADD"),
                        history.get_history("m"),
                        history.save_messages([{"role": "user"}], "s"),
                        history.get_last_messages("s"),
                        history.stats(),
                        history.reset(),
                        history.aclose(),
                    ):
                        try:
                            await call
                        except Exception as error:
                            errors.append(type(error))
                    return errors

                return asyncio.run(calls())

            assert await asyncio.to_thread(elsewhere) == [WrongLoop] * 7
            await history.add_history("m", None, "still ours", "ADD")

    def test_a_manager_whose_loop_has_ended_is_refused(self, open_store: OpenStore) -> None:
        async def opened() -> HistoryManager:
            return await open_store()

        async def use(history: HistoryManager) -> None:
            await history.add_history("m", None, "x", "ADD")

        history = asyncio.run(opened())
        with pytest.raises((WrongLoop, HistoryClosed)):
            asyncio.run(use(history))
        history.close()

    async def test_writes_during_a_reset_and_a_close(self, open_store: OpenStore) -> None:
        history = await open_store()
        await history.add_history("m", None, "x", "ADD")
        for steps in range(6):
            task = asyncio.create_task(history.reset())
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        await history.add_history("m", None, "y", "ADD")
        for steps in range(3):
            task = asyncio.create_task(history.aclose())
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        await history.aclose()

    async def test_twenty_writers_through_ten_resets_and_a_close(
        self, open_store: OpenStore
    ) -> None:
        history = await open_store()
        closed = 0

        async def write(name: int) -> None:
            nonlocal closed
            try:
                while True:
                    await history.add_history(f"m{name}", None, "x", "ADD")
                    await history.save_messages([{"role": "user", "content": "x"}], f"s{name}")
                    await history.get_history(f"m{name}")
                    await asyncio.sleep(0)
            except HistoryClosed:
                closed += 1

        writers = [asyncio.create_task(write(n)) for n in range(20)]
        for _ in range(10):
            await history.reset()
        await history.aclose()
        await asyncio.gather(*writers)
        assert closed == 20

    async def test_reads_end_with_an_answer_or_closed(self, open_store: OpenStore) -> None:
        history = await open_store()
        for n in range(50):
            await history.add_history("m", None, str(n), "UPDATE")
        reads = [asyncio.create_task(history.get_history("m")) for _ in range(100)]
        await asyncio.sleep(0)
        await history.aclose()
        for result in await asyncio.gather(*reads, return_exceptions=True):
            assert isinstance(result, list | HistoryClosed)


class InterruptionCases(Cases):
    """Cancelling, resetting or closing in the middle leaves nothing half done."""

    async def test_calls_cancelled_at_random(self, open_store: OpenStore) -> None:
        """Calls cancelled at random: an ack means written, once, and every batch is whole."""
        chance = random.Random(20_261_120)  # noqa: S311 - a test's random choices
        acked: set[str] = set()

        async def agent(history: HistoryManager, name: int) -> None:
            for n in range(15):
                size = chance.choice([1, 1, 1, 5, 700])
                memory_id = f"{name}.{n}"
                items = [{"memory_id": memory_id, "event": "ADD"} for _ in range(size)]
                call = asyncio.create_task(history.batch_add_history(items))
                messages = asyncio.create_task(history.save_messages([{"role": "user"}], "s"))
                for _ in range(chance.randrange(12)):
                    await asyncio.sleep(0)
                if chance.random() < 0.5:
                    call.cancel()
                    messages.cancel()
                await asyncio.wait([call, messages])
                sizes[memory_id] = size
                if not call.cancelled():
                    call.result()
                    acked.add(memory_id)

        sizes: dict[str, int] = {}
        async with open_store() as history:
            await asyncio.gather(*(agent(history, name) for name in range(20)))
            assert acked
            assert len(acked) < len(sizes)
            for memory_id, size in sizes.items():
                found = len(await history.get_history(memory_id))
                assert found in ({size} if memory_id in acked else {0, size})

    async def test_a_reset_runs_in_the_order_of_calls(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            before = [
                asyncio.create_task(history.add_history("m", None, "before", "ADD")) for _ in "123"
            ]
            await asyncio.sleep(0)
            reset = asyncio.create_task(history.reset())
            await asyncio.sleep(0)
            after = [
                asyncio.create_task(history.add_history("m", None, "after", "ADD")) for _ in "12"
            ]
            await asyncio.gather(*before, reset, *after)
            assert [r.new_memory for r in await history.get_history("m")] == ["after"] * 2

    async def test_calls_during_opening_are_refused(self, open_store: OpenStore) -> None:
        history = HistoryManager(_OpenedLater(open_store().backend))
        opening = asyncio.ensure_future(history)
        await asyncio.sleep(0)
        with pytest.raises(HistoryClosed, match="not open yet"):
            await history.add_history("m", None, "x", "ADD")
        await opening
        await history.aclose()

    @pytest.mark.parametrize("how", ["close", "aclose"])
    async def test_closing_while_opening(self, open_store: OpenStore, how: str) -> None:
        history = HistoryManager(_OpenedLater(open_store().backend))
        opening = asyncio.ensure_future(history)
        await asyncio.sleep(0)
        if how == "close":
            history.close()
        else:
            await history.aclose()
        with pytest.raises(HistoryClosed, match="while it was being opened"):
            await opening
        await history.aclose()


class _OpenedLater:
    """A backend that does not open at once, even if the wrapped one does."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.where = backend.where
        self.system = backend.system
        self.store_name = backend.store_name
        self.new_locks = backend.new_locks

    async def open(self, committed: CommitSignal, ended: Callable[[], None]) -> Store:
        await asyncio.sleep(0)
        return await self._backend.open(committed, ended)
