"""The request and the report of `forget`."""

from dataclasses import dataclass

from async_history._core.reading.filters import check_scopes
from async_history._core.removing.erase_request import (
    EraseLimits,
    Vacuuming,
    check_vacuuming,
    new_erase_request,
)
from async_history._core.wording import counted
from async_history._core.writing.erased_names import Name
from async_history.errors import InvalidInput


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetReport:
    """What `forget` has removed, or would remove in a dry run, and where texts may remain."""

    done: bool
    """False for a dry run: nothing was changed."""
    memories: int = 0
    """Number of memories removed from the vector store."""
    entities: int = 0
    """Number of entities removed from mem0's entity store (mem0 2.x)."""
    records: int = 0
    """Number of records that lost their texts, metadata or cause."""
    messages: int = 0
    """Number of messages removed from the buffers."""
    later: int = 0
    """Number of the owner's records from operations that began after the erasure."""
    copies: tuple[str, ...] = ()
    """Paths of the copies of the history that this library made and that still have the texts."""
    remains: tuple[str, ...] = ()
    """Where else the texts may remain, and what to do about it: one sentence each."""
    erasure_id: str | None = None
    """The `id` of its entry among the history's `erasures()`; None in a dry run."""

    @property
    def matches_nothing(self) -> bool:
        """Whether there was nothing to forget."""
        return not (self.memories or self.entities or self.records or self.messages)

    def outcome(self) -> str:
        """Return the outcome as one sentence for people."""
        verb = "removed" if self.done else "would remove"
        erased = "erased" if self.done else "erase"
        return (
            f"{verb} {counted(self.memories, 'memory', 'memories')} and "
            f"{counted(self.entities, 'entity', 'entities')} from the vector store, and {erased} "
            f"the texts of {counted(self.records, 'record')} and "
            f"{counted(self.messages, 'message')} in the history"
        )


@dataclass(frozen=True, slots=True)
class ForgetRequest:
    """The owner to forget, and the reason."""

    owner: Name
    reason: str
    dry_run: bool
    vacuum: Vacuuming

    @property
    def by_name(self) -> dict[str, str]:
        """The owner as the argument of a call."""
        return dict([self.owner])


def new_forget_request(
    *,
    user_id: str | None = None,
    agent_id: str | None = None,
    run_id: str | None = None,
    app_id: str | None = None,
    reason: str,
    dry_run: bool = False,
    vacuum: Vacuuming = True,
) -> ForgetRequest:
    """Check the arguments of `forget`.

    Raises:
        InvalidInput: naming the argument that is not valid.
    """
    if app_id is not None:
        raise InvalidInput(
            "mem0 can't forget by app_id: it does not store it with entities and buffered "
            "messages, and finds no memory by it. Forget by user_id, agent_id or run_id, or erase "
            "the history's own records with its erase(app_id=…)"
        )
    owner = check_scopes(user_id=user_id, agent_id=agent_id, run_id=run_id, app_id=None)
    if not owner:
        raise InvalidInput("name whom to forget: user_id, agent_id or run_id")
    new_erase_request((), None, (), reason, owner=owner, dry_run=dry_run, limits=EraseLimits())
    return ForgetRequest(owner[0], reason, dry_run, check_vacuuming(vacuum))
