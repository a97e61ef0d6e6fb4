"""The texts that a batch's transaction finds for its restorations."""

from collections.abc import Sequence
from typing import Any, Final

from async_history._core.encryption.sealed_records import text_record
from async_history._core.encryption.sealing import is_json_sealed, is_sealed, may_have_sealed
from async_history._core.records.json_object import JsonObject
from async_history._core.records.records import HistoryRecord, MemoryState, made_state
from async_history._core.writing.submissions import RestoreMemory

_TEXTS: Final = (1, 3, 5, 6)
_STATE: Final = len(MemoryState._fields)
"""The indexes of texts in a row, and its number of values of a `MemoryState`."""


class RestoredTexts:
    """The texts of restorations, and the states of their memories, as they are read.

    Attributes:
        states: the states of memories, by name. A sealed one is left out.
    """

    def __init__(self) -> None:
        self.states: dict[str, MemoryState] = {}
        self._sealed: dict[RestoreMemory, HistoryRecord] = {}

    def add(self, restored: Sequence[RestoreMemory], rows: Sequence[Sequence[Any] | None]) -> None:
        """Add what was read for restorations.

        Args:
            rows: one for each restoration; None for a memory without records. A row begins with the
                values of a `MemoryState`, and the id, text and context of the record of the moment;
                contexts are JSON. That text is None if there is none to restore.
        """
        found = [(one, row) for one, row in zip(restored, rows, strict=True) if row is not None]
        # Usually none is sealed: then looking at each takes longer than at all of them.
        are_clear = not may_have_sealed([row[at] for _, row in found for at in _TEXTS])
        for one, row in found:
            _, text, _, context, then_id, then_text, then_context, *_ = row
            if are_clear or not _is_sealed(text, context):
                state = made_state(row[:_STATE])
                if context is not None:
                    state = state._replace(context=JsonObject(context))
                self.states[one.new.memory_id] = state
            if then_text is None:
                continue
            if are_clear or not _is_sealed(then_text, then_context):
                one.find(then_text, None if then_context is None else JsonObject(then_context))
            else:
                self._sealed[one] = text_record(then_id, then_text, then_context)

    @property
    def sealed(self) -> Sequence[HistoryRecord]:
        """Records of sealed texts to restore, with only their ids, texts and contexts."""
        return list(self._sealed.values())

    def add_opened(self, records: Sequence[HistoryRecord]) -> None:
        """Add the texts of the records of `sealed`, opened."""
        for one, then in zip(self._sealed, records, strict=True):
            one.find_in(then)


def _is_sealed(text: object, context: str | None) -> bool:
    return is_sealed(text) or (context is not None and is_json_sealed(context))
