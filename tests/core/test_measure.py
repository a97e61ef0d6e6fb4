"""`stats()` returns whatever the store does, and warns if the store does not answer."""

import asyncio
from pathlib import Path

import pytest

from async_history import StorageUnreachable, open_history
from async_history._core.stats import Measured, Measurements, StoreWarning

pytestmark = pytest.mark.once

KNOWN = StoreWarning("known", "warning", "known")


class Store:
    """A store that answers when it may."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.error: Exception | None = None
        self.asked = 0

    async def measure(self) -> Measured:
        self.asked += 1
        await self.may_answer.wait()
        if self.error is not None:
            raise self.error
        return Measured(self.asked, 7, (KNOWN,))


async def test_figures_are_new_while_the_store_answers() -> None:
    store = Store()
    store.may_answer.set()
    measurements = Measurements(store.measure)
    assert [await measurements.latest() for _ in range(2)] == [
        Measured(1, 7, (KNOWN,)),
        Measured(2, 7, (KNOWN,)),
    ]


async def test_a_store_that_hangs_is_measured_once_and_its_last_figures_returned() -> None:
    store = Store()
    store.may_answer.set()
    measurements = Measurements(store.measure)
    await measurements.latest()
    store.may_answer.clear()
    for _ in range(3):
        figures = await measurements.latest()
        assert (figures.file_bytes, figures.wal_bytes) == (1, 7)
        assert [(one.code, one.severity) for one in figures.warnings] == [
            ("store-unreachable", "critical"),
            ("known", "warning"),
        ]
    assert store.asked == 2
    store.may_answer.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (await measurements.latest()).warnings == (KNOWN,)
    measurements.close()


async def test_an_error_of_the_store_is_a_warning_and_a_bug_is_raised() -> None:
    store = Store()
    store.may_answer.set()
    measurements = Measurements(store.measure)
    store.error = StorageUnreachable("the server is gone")
    figures = await measurements.latest()
    assert "the server is gone" in figures.warnings[0]
    store.error = ValueError("a bug")
    with pytest.raises(ValueError, match="a bug"):
        await measurements.latest()


async def test_closing_ends_a_measurement(tmp_path: Path) -> None:
    history = await open_history(tmp_path / "history.db")
    store = Store()
    history._measurements = Measurements(store.measure)
    assert (await history.stats()).warnings[0].code == "store-unreachable"
    await history.aclose()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert store.asked == 1
