"""The turns of each store, shared by all its users in this process."""

from typing import Final
from weakref import WeakKeyDictionary, WeakValueDictionary

from async_history._core.locking.locks import ProcessLocks
from async_history._core.manager import HistoryManager
from async_history._core.validation import check_flag
from async_history.mem0._threads.forks import LockFreeInChild
from async_history.mem0._turns.process_locks import FileLocks
from async_history.mem0._turns.turn_queues import TurnQueues
from async_history.mem0._turns.turns import Turns


def turns_of(manager: HistoryManager, *, between_processes: bool = True) -> Turns:
    """Return the turns of a manager's store.

    Raises:
        InvalidInput: `between_processes` is not a bool.
    """
    check_flag("turns_between_processes", between_processes)
    name = manager.backend.store_name
    with _registering.lock:
        if name is None:
            found = _of_managers.setdefault(manager, TurnQueues())
        else:
            found = _known.get(name) or TurnQueues(_locks_of(manager))
            _known[name] = found
    return Turns(found, between_processes)


def _locks_of(manager: HistoryManager) -> ProcessLocks | None:
    name = manager.backend.store_name
    if name is not None and name[0] == "file":
        return FileLocks(name[1])
    return manager.backend.new_locks()


_registering: Final = LockFreeInChild()
_known: Final["WeakValueDictionary[tuple[str, ...], TurnQueues]"] = WeakValueDictionary()
_of_managers: Final["WeakKeyDictionary[HistoryManager, TurnQueues]"] = WeakKeyDictionary()
NO_TURNS: Final = Turns(TurnQueues(), between_processes=False)
"""Replaces the turns of a closed store, so that its locks are closed with their last user."""
