"""Operations of an `AsyncMemory` beyond mem0's, on its history and its vector store."""

import functools
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from async_history._core.manager import HistoryManager
from async_history._core.reading.timeline import Moment, check_moment
from async_history._core.records.recording import begin_operation
from async_history._core.records.records import HistoryRecord
from async_history._core.requests import takes
from async_history._core.undoing.rollback import RollbackReport
from async_history._core.undoing.rollback_request import (
    RollbackRequest,
    rollback_request,
    undo_request,
)
from async_history.mem0._assigned import OWN_RECORDER, require_own_history
from async_history.mem0._checking.check import check_memory, check_request
from async_history.mem0._checking.differences import MemoryCheck
from async_history.mem0._checking.learning import LearnedOwners, learn
from async_history.mem0._checking.repair import CheckRequest
from async_history.mem0._forgetting.forget_request import (
    ForgetReport,
    ForgetRequest,
    new_forget_request,
)
from async_history.mem0._forgetting.owner_removal import forget
from async_history.mem0._loop_state import LoopState
from async_history.mem0._loop_states import LoopStates
from async_history.mem0._operation import Operation
from async_history.mem0._recorder import Recorder
from async_history.mem0._steps import LoopSteps
from async_history.mem0._threads.hosted_history import ask
from async_history.mem0._threads.workers import Workers, using
from async_history.mem0._undoing.restore import check_metadata, restore_memory
from async_history.mem0._undoing.rollback import take_back

T = TypeVar("T")


class HistoryOperations:
    """Operations on the history and the vector store of an `AsyncMemory`, and running them."""

    _history_recorder: Recorder
    _history_states: LoopStates
    _history_db: Any = None
    """The object assigned to `db`; None in an instance that was created without its constructor."""
    _history_workers: Workers | None = None
    """None in an instance that was created without its constructor."""

    async def restore(
        self,
        memory_id: str,
        *,
        to: Moment,
        metadata: Mapping[str, Any] | None = None,
        actor_id: str | None = None,
        role: str | None = None,
    ) -> dict[str, Any]:
        """Restore a memory as it was at a moment; return the change, as `history` lists it.

        One record is added to the history (see `HistoryManager.restore`), and one before it if the
        vector store has a text that the history does not know. Then the vector store gets the text,
        embedding, hash and metadata. If the history does not know the metadata of that moment, the
        vector store's is kept. A deleted memory is inserted again under its id, with the owner,
        metadata, creation time, actor and role from its history. If the history does not know the
        owner (plain mem0 recorded the memory), name it in `metadata`; otherwise searches by owner
        will not find the memory.

        Args:
            memory_id: the memory to restore.
            to: an aware datetime, or a version number: 1 is the ADD.
            metadata: more fields for the vector store, which replace those of the history. The
                owner of an existing memory cannot be changed.
            actor_id: the actor of the new record.
            role: the role of the actor.

        Raises:
            InvalidInput: the memory is unknown, did not exist then, or its text is not known.
            HistoryConflict: the memory changed meanwhile. Nothing was written.
            OwnerConflict: the memory is deleted, and `metadata` names another owner than its
                history. Nothing was written.
        """
        check_moment("to", to)
        given = check_metadata(metadata)
        require_own_history(self._history_db, "restore")

        async def restored(operation: Operation) -> HistoryRecord:
            return await restore_memory(LoopSteps(operation), memory_id, to, given, actor_id, role)

        return (await self._history_in_turn("restore", memory_id, restored)).as_dict()

    @takes(rollback_request)
    async def rollback(self, asked: RollbackRequest) -> RollbackReport:
        """Take memories back to their state at an instant, also in the vector store.

        Works as `HistoryManager.rollback`. Each memory is taken back in its turn, completely or not
        at all: its record is written, then the vector store follows as in `restore`, or deletes a
        memory that did not exist then. If only the vector store is not in the wanted state, only it
        is changed: so a repeated call continues an interrupted one. A text that only the vector
        store has is recorded first.

        Raises:
            InvalidInput: naming the argument, or the history is not one of this library.
            RollbackIncomplete: the vector store or the embedding model failed for some memories.
                The others are done. Call it again.
            HistoryError: as `HistoryManager.rollback`. Completed steps are kept. Call it again.
        """
        return await self._history_take_back("rollback", asked)

    @takes(undo_request)
    async def undo(self, asked: RollbackRequest) -> RollbackReport:
        """Take back what a run did, or what has a cause, also in the vector store.

        Works as `HistoryManager.undo`; the vector store follows as in `rollback`. A memory whose
        text others changed in the vector store without a record is a conflict, and is not changed.

        Raises:
            InvalidInput, RollbackIncomplete, HistoryError: as `rollback`.
        """
        return await self._history_take_back("undo", asked)

    async def _history_take_back(self, name: str, asked: RollbackRequest) -> RollbackReport:
        require_own_history(self._history_db, name)
        with using(self._history_workers):
            return await take_back(
                self, asked, self._history_ask, functools.partial(self._history_in_turn, name)
            )

    @takes(check_request)
    async def check(self, asked: CheckRequest) -> MemoryCheck:
        """Compare the vector store with the history; return what differs, and repair it if asked.

        Each memory's text, metadata, owner and deletion are compared, and its chain is checked as
        by `HistoryManager.check`. Writers can continue: differences are checked again in the
        memory's turn. For a memory made within the last minute without a history, the check waits
        up to five seconds. Memories that the history does not know are found if the vector store
        lists them.

        With `repair="history"` a record of the vector store's state is appended to the history,
        with the report's `id` in its cause, under `check`. With `repair="vector"` the vector store
        is changed as in `restore`; a memory that the history does not know is kept.

        Args:
            user_id, agent_id, run_id, app_id: only memories of this owner.
            repair: the side to repair: "history" or "vector".
            dry_run: only report what a repair would do. Give False to repair.

        Raises:
            InvalidInput: naming the argument, or the history is not one of this library.
            CursorGone: records were removed during the check. Call it again.
            HistoryError: as for every call. Completed repairs are kept. Call it again.
        """
        require_own_history(self._history_db, "check")
        in_turn = functools.partial(self._history_in_turn, "check")
        return await check_memory(
            self, asked, self._history_ask, in_turn, self._history_state().resetting
        )

    async def learn_owners(self) -> LearnedOwners:
        """Learn unknown owners of the history's memories from the vector store, and report them.

        This is for a history from before owners were recorded, and for records of plain mem0. Each
        such memory is read from the vector store, one by one; no record is added. It may be
        cancelled, and called again.

        Raises:
            InvalidInput: the history is not one of this library.
        """
        require_own_history(self._history_db, "learn_owners")
        return await self._history_run(
            lambda: learn(LoopSteps(self._history_recorder.require_operation())), "learn_owners"
        )

    @takes(new_forget_request)
    async def forget(self, asked: ForgetRequest) -> ForgetReport:
        """Forget an owner: all their memories, in the vector store and in the history.

        The memories, also those that the history does not know, and their entities are removed from
        the vector store. Then `HistoryManager.erase` removes the owner's texts, metadata, causes,
        buffered messages and id from the history, also for memories deleted before. Then both are
        checked once more.

        An operation that began before, and changes something later, raises `Erased`, and its
        changes are removed from the vector store. Operations that begin after the erasure are
        accepted: the same user may come back. After an interruption, call it again: it continues.

        Args:
            user_id, agent_id, run_id: one owner to forget.
            app_id: refused, because mem0 finds nothing by it; see `HistoryManager.erase`.
            reason: kept with the erasure. Do not name a person in it.
            dry_run: only count; in the vector store, the memories that it lists.
            vacuum: see `HistoryManager.erase`.

        Raises:
            InvalidInput: an argument is not valid (it is named), the history is not one of this
                library, or a graph (mem0 1.0) cannot forget such an owner. Nothing was removed.
            HistoryError: removals so far are kept. Call it again.
        """
        require_own_history(self._history_db, "forget")
        return await self._history_run(
            lambda: forget(LoopSteps(self._history_recorder.require_operation()), asked), "forget"
        )

    # Running an operation

    async def _history_run(
        self, call: Callable[[], Coroutine[Any, Any, T]], name: str = "call"
    ) -> T:
        """Run a public operation of mem0 until its last ack.

        It also works within another operation, whose hooks may start it without waiting for it.
        """
        if self._history_db is not OWN_RECORDER:
            with using(self._history_workers):
                return await call()
        begun = begin_operation()
        state = self._history_states.here()
        if not state.is_open:
            await state.open_store()
        operation = state.new_operation(
            name, self, self._history_recorder, begun, self._history_workers
        )
        return await state.run(operation, call)

    async def _history_in_turn(
        self, name: str, memory_id: str, body: Callable[[Operation], Awaitable[T]]
    ) -> T:
        """Run an operation on one memory, in its turn, when all earlier records are readable."""
        state = self._history_state()

        async def in_turn() -> T:
            operation = self._history_recorder.require_operation()
            async with operation.part(memory_id):
                await state.wait_for_acks()
                return await body(operation)

        return await self._history_run(in_turn, name)

    async def _history_ask(self, function: Callable[[HistoryManager], Awaitable[T]]) -> T:
        """Call a function with the history manager, on its loop."""
        return await ask(await self._history_state().open_store(), function)

    def _history_state(self) -> LoopState:
        """Return the state for the running loop."""
        return self._history_states.here()
