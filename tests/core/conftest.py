"""The store and the writer of the core's tests."""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from async_history._core.writing.wakeups import HEAD_START_S
from async_history._core.writing.writer import GroupCommitWriter
from async_history._core.writing.writer_options import WriterOptions
from tests.core.writers import Item, MakeWriter, Store


@pytest.fixture
async def store() -> Store:
    store = Store()
    store.gate.set()
    return store


@pytest.fixture
async def make_writer(store: Store) -> AsyncIterator[MakeWriter]:
    writers: list[GroupCommitWriter[Item]] = []

    def make(
        *,
        commit_timeout_s: float = 30.0,
        head_start_s: float = HEAD_START_S,
        prepare: Callable[[Sequence[Item]], None] | None = None,
        forget_prepared: Callable[[], None] = lambda: None,
        **bounds: Any,
    ) -> GroupCommitWriter[Item]:
        writers.append(
            GroupCommitWriter(
                store.commit,
                finish=store.finish,
                options=WriterOptions(**bounds),
                commit_timeout_s=commit_timeout_s,
                head_start_s=head_start_s,
                prepare=prepare,
                forget_prepared=forget_prepared,
            )
        )
        return writers[-1]

    yield make
    store.gate.set()
    for writer in writers:
        await writer.aclose(5)
