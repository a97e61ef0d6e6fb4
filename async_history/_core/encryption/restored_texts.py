"""The texts that a batch's transaction finds for its restorations."""

from collections.abc import Sequence
from typing import Any

from async_history._core.encryption.sealed_records import text_record
from async_history._core.encryption.sealing import is_json_sealed, is_sealed
from async_history._core.records.json_object import JsonObject
from async_history._core.records.records import HistoryRecord, MemoryState
from async_history._core.writing.submissions import RestoreMemory


class RestoredTexts:
    """The texts of restorations, and the states of their memories, as they are read.

    Attributes:
        states: the states of memories, by name. A sealed one is left out.
    """

    def __init__(self) -> None:
        self.states: dict[str, MemoryState] = {}
        self._sealed: dict[RestoreMemory, HistoryRecord] = {}

    def add(self, one: RestoreMemory, row: Sequence[Any]) -> None:
        """Add what was read for a restoration.

        Args:
            row: begins with the values of a `MemoryState`, and the id, text and context of the
                record of the moment; contexts are JSON. That text is None if there is none to
                restore.
        """
        is_deleted, text, created_at, context, then_id, then_text, then_context, *_ = row
        if not (is_sealed(text) or (context is not None and is_json_sealed(context))):
            what = None if context is None else JsonObject(context)
            self.states[one.decided_by] = MemoryState(is_deleted, text, created_at, what)
        if then_text is None:
            return
        if is_sealed(then_text) or (then_context is not None and is_json_sealed(then_context)):
            self._sealed[one] = text_record(then_id, then_text, then_context)
        else:
            one.find(then_text, None if then_context is None else JsonObject(then_context))

    @property
    def sealed(self) -> Sequence[HistoryRecord]:
        """Records of sealed texts to restore, with only their ids, texts and contexts."""
        return list(self._sealed.values())

    def add_opened(self, records: Sequence[HistoryRecord]) -> None:
        """Add the texts of the records of `sealed`, opened."""
        for one, then in zip(self._sealed, records, strict=True):
            one.find_in(then)
