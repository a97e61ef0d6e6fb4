"""Plans of an undo: the changes to take back, and a memory's state before them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

from async_history._core.reading.filters import Pairs, check_cause_filter
from async_history._core.records.records import Event, HistoryRecord
from async_history._core.records.values import check_name
from async_history._core.undoing.rollback_plan import (
    MemoryPlan,
    RollbackAction,
    conflict,
    named,
    plan_between,
)
from async_history.errors import InvalidInput

ROLLBACK: Final = "rollback"
"""The key of the cause that has the id of a rollback."""
UNDO: Final = "undo"
"""The key of the cause that has the id of an undo."""
UNDO_OF: Final = "undo_of"
"""The key of the cause that names what an undo took back."""
_MOST_CHARACTERS: Final = 1_024
_OF_RUN: Final = "run:"
_DIGEST: Final = "blake2b:"
"""The prefixes for the names of a run, and of a cause with many keys. Other causes' names have a
"=".
"""
_KEPT: Final = 1_024
"""Size of the cache of digests: consecutive causes are usually the same."""


@dataclass(frozen=True, slots=True)
class UndoTarget:
    """What an undo takes back: the records of a run, or of a cause.

    It is identified by digests. So texts erased from the records that were taken back are not in
    the undo's own records either, which name the target.
    """

    run: str | None
    """The digest of the run's id."""
    cause: Pairs
    """Keys, and digests of their texts."""

    @property
    def name(self) -> str:
        """Its name in the cause of the undo's own records. It is unique."""
        text = urlencode(sorted(self.cause)) if self.run is None else _OF_RUN + self.run
        return text if len(text) <= _MOST_CHARACTERS else _DIGEST + _digest(text)

    def includes(self, record: HistoryRecord) -> bool:
        """Return whether a record belongs to this run or cause.

        A record belongs to the run that its cause names. If its cause names no run, it belongs to
        its memory's run, unless a rollback or an undo made it.
        """
        if self.is_undone_by(record):
            return False
        if self.run is None:
            return all(_is(_cause(record, key), digest) for key, digest in self.cause)
        if _cause(record, "run_id") is not None:
            return _is(_cause(record, "run_id"), self.run)
        if _cause(record, ROLLBACK) is not None or _cause(record, UNDO) is not None:
            return False
        return record.owner is not None and _is(record.owner.run_id, self.run)

    def is_undone_by(self, record: HistoryRecord) -> bool:
        """Return whether a record took back earlier changes of this run or cause."""
        return bool(_cause(record, UNDO_OF) == self.name)


def _target_named(name: object) -> UndoTarget | None:
    """Return what an undo took back, from the name in its cause; None if unknown."""
    if not isinstance(name, str) or name.startswith(_DIGEST):
        return None
    if name.startswith(_OF_RUN):
        return UndoTarget(name.removeprefix(_OF_RUN), ())
    pairs = tuple(parse_qsl(name, keep_blank_values=True))
    return UndoTarget(None, pairs) if pairs else None


@lru_cache(_KEPT)
def _digest(text: str) -> str:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _is(value: object, digest: str) -> bool:
    return isinstance(value, str) and _digest(value) == digest


@dataclass(slots=True)
class _Undone:
    """An undo found on the walk back, with what it took back: the records before it."""

    record: HistoryRecord
    target: UndoTarget
    is_met: bool = False
    """Whether a record that it took back was found."""


def check_target(
    run_id: str | None, cause: Mapping[str, str] | None
) -> tuple[UndoTarget, Sequence[Mapping[str, Any]]]:
    """Check which records to take back.

    Returns:
        The target, and the filters of queries that together find a record of each changed memory.

    Raises:
        InvalidInput: not exactly one of them was given, or it is not valid.
    """
    pairs = check_cause_filter(cause)
    if (run_id is None) is not bool(pairs):
        raise InvalidInput("name what to undo: a run_id, or a cause with at least one key")
    if run_id is None:
        target = UndoTarget(None, tuple((key, _digest(text)) for key, text in pairs))
        return target, ({"cause": dict(pairs)},)
    run_id = check_name("run_id", run_id)
    return UndoTarget(_digest(run_id), ()), ({"cause": {"run_id": run_id}}, {"run_id": run_id})


class WalkBefore:
    """Takes a memory back to its state before the last records of a run or a cause.

    If others changed it after them, it is not changed. A change that was taken back, and the undo
    that did so, do not count: neither affects the memory any more.
    """

    def __init__(self, memory_id: str, target: UndoTarget) -> None:
        self._memory_id = memory_id
        self._target = target
        self._latest: HistoryRecord | None = None
        self._undone: list[_Undone] = []
        self._changed_by: HistoryRecord | None = None
        self._is_undone = False
        self._first: HistoryRecord | None = None
        self._before: HistoryRecord | None = None

    def see(self, record: HistoryRecord) -> bool:
        """Return whether the record is the last one before those to take back."""
        self._latest = self._latest or record
        if not self._was_taken_back(record):
            self._see_change(record)
        return self._before is not None or self._is_undone

    def _was_taken_back(self, record: HistoryRecord) -> bool:
        """Return whether an undo found so far took the record back."""
        while self._undone:
            last = self._undone[-1]
            if last.target.includes(record):
                last.is_met = True
                return True
            if not last.is_met or self._target.is_undone_by(record):
                return False  # the undo found before went back at least as far
            if self._undo_of_others(record) is not None and not last.target.is_undone_by(record):
                return False  # more records that the last one took back may follow
            self._undone.pop()
        return False

    def _undo_of_others(self, record: HistoryRecord) -> UndoTarget | None:
        """Return the other run or cause whose changes the record took back, if there is one."""
        if self._target.includes(record) or self._target.is_undone_by(record):
            return None
        return _target_named(_cause(record, UNDO_OF))

    def _see_change(self, record: HistoryRecord) -> None:
        """Process a record that was not taken back."""
        undone = self._undo_of_others(record)
        if undone is not None:
            self._undone.append(_Undone(record, undone))
            return
        if self._undone:  # what it took back is not in the expected position: it counts as a change
            self._see_other(self._undone[0].record)
            self._undone.clear()
        if not self._target.includes(record):
            self._is_undone = self._target.is_undone_by(record) and self._first is None
            self._see_other(record)
        elif self._before is None:
            self._first = record

    def _see_other(self, record: HistoryRecord) -> None:
        """Process a record of others, or the one with the state before those to take back."""
        if self._first is None:
            self._changed_by = record
        elif self._before is None:
            self._before = record

    def plan(self) -> MemoryPlan:
        """Return the plan that takes the memory back."""
        if self._is_undone:
            return MemoryPlan(memory_id=self._memory_id, action=RollbackAction.NOTHING)
        if not all(undone.is_met for undone in self._undone):
            self._see_other(self._undone[0].record)
        first, latest, before = self._first, self._latest, self._before
        if first is None or latest is None:
            return conflict(self._memory_id, "the records to take back are gone")
        if before is None and first.event != Event.ADD:
            if first.old_memory is None:
                return conflict(
                    self._memory_id,
                    f"its history begins with {named(first)}: what it said before is not known",
                )
            before = replace(
                first,
                event=Event.ADD,
                new_memory=first.old_memory,
                is_deleted=False,
                context=None,
            )
        plan = plan_between(self._memory_id, latest, before)
        if self._changed_by is not None and plan.action is not RollbackAction.NOTHING:
            return conflict(self._memory_id, f"{named(self._changed_by)} changed it afterwards")
        return plan


def _cause(record: HistoryRecord, key: str) -> Any:
    return None if record.cause is None else record.cause.get(key)
