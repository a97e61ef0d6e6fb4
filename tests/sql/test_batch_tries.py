"""The tries of a batch: what is said of its calls, and how much time they have."""

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from async_history import StorageUnreachable
from async_history._core.writing import late_tries, parts
from async_history._core.writing.commit_function import CommitTry, OutcomeUnknown, TryAgain
from async_history._sql.connecting.session_limits import OWN_LIMITS, Limits
from async_history._sql.writing import batch_tries
from async_history._sql.writing.batch_tries import BatchTries
from async_history._sql.writing.batches import WrittenBatch
from async_history._sql.writing.commit import Progress

pytestmark = pytest.mark.once

RETRY_S = 30.0
TRY_S = RETRY_S / 3


@dataclass
class Call:
    number: int
    size_bytes: int = 10
    record_count: int = 1

    @property
    def ids(self) -> tuple[str]:
        return (f"id{self.number}",)


def locked() -> OperationalError:
    return OperationalError("INSERT", {}, Exception(1205, "Lock wait timeout exceeded"))


@dataclass
class Server:
    """A database whose clock goes on only when a transaction takes time.

    `write` and `commit` get the numbers of a transaction's calls; they raise if it fails.
    """

    limits_statements: bool = True
    now: float = 1000.0
    write: Callable[[list[int], Progress], None] = lambda numbers, progress: None
    commit: Callable[[list[int]], None] = lambda numbers: None
    tried: list[list[int]] = field(default_factory=list)
    within_s: list[float] = field(default_factory=list)
    written: set[int] = field(default_factory=set)
    limits: Limits = OWN_LIMITS
    where: str = "the server"

    def tries(self) -> BatchTries:
        given: Any = _Written(self)
        return BatchTries(
            given,
            self._transact,
            given,
            retry_timeout_s=RETRY_S,
            waited=lambda seconds: None,
            committed=lambda: None,
        )

    async def _transact(self, work: Any, within_s: float, limits: Limits) -> Any:
        self.within_s.append(within_s)
        numbers, found = await work(None)
        self.commit(numbers)
        self.written.update(numbers)
        return found


class _Written:
    """Stands for the batches and the limits of a server's session."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.where = server.where
        self.limits_statements = server.limits_statements

    async def set_within(self, connection: Any, limits: Limits) -> None:
        self._server.limits = limits

    async def write(
        self,
        connection: Any,
        batch: Sequence[Call],
        this: CommitTry,
        waited: Any,
        progress: Progress,
    ) -> Any:
        numbers = [one.number for one in batch]
        self._server.tried.append(numbers)
        await progress.on_locked()
        self._server.write(numbers, progress)
        return numbers, WrittenBatch({}, lambda: None)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()
    for module in (batch_tries, late_tries, parts):
        monkeypatch.setattr(module, "monotonic", lambda: made.now)
    return made


def calls(count: int, **sizes: int) -> Any:
    return [Call(number, **sizes) for number in range(count)]


def first_try(server: Server) -> CommitTry:
    return CommitTry(False, server.now, lambda: None)


def late_try(server: Server, after_s: float = 2 * TRY_S) -> CommitTry:
    """Return a try that begins after the first one of a batch that begins now."""
    this = first_try(server)
    server.now += after_s
    return this._replace(is_repeated=True)


def names(refused: Any) -> dict[int, str]:
    return {number: type(error).__name__ for number, error in refused.items()}


def slow() -> OperationalError:
    return OperationalError("INSERT", {}, Exception(1969, "Query execution was interrupted"))


def let_wait(server: Server, bad: int, took_s: float = 0.0) -> None:
    """Let a call wait for a lock once it was looked up; each transaction takes some time."""

    def write(numbers: list[int], progress: Progress) -> None:
        server.now += took_s
        progress.has_looked_up = True
        if bad in numbers:
            raise locked()

    server.write = write


def let_not_end(server: Server, bad: set[int], took_s: Callable[[list[int]], float]) -> None:
    """Let the server end statements of these calls, and others that take longer than it allows."""

    def write(numbers: list[int], progress: Progress) -> None:
        limit_s = server.limits.statement_s
        if bad.isdisjoint(numbers) and (limit_s is None or took_s(numbers) <= limit_s):
            server.now += took_s(numbers)
        elif limit_s is None:
            server.now += TRY_S
            raise TryAgain(StorageUnreachable("ended")) from slow()
        else:
            server.now += limit_s
            raise slow()

    server.write = write


async def late_after_unknown(server: Server, tries: BatchTries, batch: Any) -> CommitTry:
    """Let the outcome of a batch's first try be unknown; return a late one."""
    this = first_try(server)

    def lose(numbers: list[int]) -> None:
        raise OutcomeUnknown("the connection was lost")

    server.commit = lose
    with pytest.raises(OutcomeUnknown):
        await tries.commit(batch, this)
    server.commit = lambda numbers: None
    return late_try(server)


async def test_only_the_call_that_waits_is_refused(server: Server) -> None:
    tries = server.tries()
    let_wait(server, 3)
    this = late_try(server)
    assert names(await tries.commit(calls(8), this)) == {3: "StorageLocked"}
    assert server.written == {0, 1, 2, 4, 5, 6, 7}
    assert server.limits.lock_s == 1.0  # MariaDB takes whole seconds


async def test_a_call_that_was_looked_up_alone_is_not_written(server: Server) -> None:
    tries = server.tries()
    this = await late_after_unknown(server, tries, calls(4))
    let_wait(server, 3)
    assert names(await tries.commit(calls(4), this)) == {3: "StorageLocked"}


async def test_the_outcome_of_a_part_that_a_late_try_wrote_is_unknown_in_the_next(
    server: Server,
) -> None:
    tries = server.tries()
    let_wait(server, 3)
    this = late_try(server)

    def restart(numbers: list[int]) -> None:
        if server.written:
            raise TryAgain(StorageUnreachable("restarted"))

    server.commit = restart
    with pytest.raises(OutcomeUnknown):
        await tries.commit(calls(4), this)
    assert server.written == {0, 1}

    def wait(numbers: list[int], progress: Progress) -> None:
        raise locked()  # the look-up waits

    server.write = wait
    refused = await tries.commit(calls(4), this)
    assert names(refused) == dict.fromkeys(range(4), "CommitUnknown")


async def test_the_outcome_of_a_part_that_is_refused_as_a_whole_is_unknown(server: Server) -> None:
    """One of its calls made it fail; an earlier try may have written the others."""
    tries = server.tries()
    this = await late_after_unknown(server, tries, calls(4))
    let_wait(server, 3, took_s=RETRY_S)
    assert names(await tries.commit(calls(4), this)) == dict.fromkeys(range(4), "CommitUnknown")


async def test_late_tries_end_with_the_time_of_the_batch(server: Server) -> None:
    """Then the part that fails is not written in parts, and the others are tried once."""
    tries = server.tries()
    let_wait(server, 1, took_s=6.0)
    this = late_try(server)
    refused = await tries.commit(calls(8), this)
    assert server.tried == [list(range(8)), [0, 1, 2], [3, 4, 5], [6, 7]]
    assert names(refused) == dict.fromkeys(range(3), "StorageLocked")
    assert server.written == {3, 4, 5, 6, 7}


@pytest.mark.parametrize("count", [1, 5, 15])
async def test_several_calls_that_do_not_end_are_found_in_time(count: int, server: Server) -> None:
    """The others are written. The calls that wait for the next batch do so no longer than that."""
    tries, first, begun = server.tries(), first_try(server), server.now
    bad = {number * 500 // count for number in range(count)}
    let_not_end(server, bad, lambda numbers: 0.02)
    with pytest.raises(TryAgain):
        await tries.commit(calls(500), first)
    refused = await tries.commit(calls(500), first._replace(is_repeated=True))
    assert names(refused) == dict.fromkeys(sorted(bad), "StorageUnreachable")
    assert server.now - begun < RETRY_S + TRY_S


async def test_a_slow_call_is_written_after_one_that_does_not_end(server: Server) -> None:
    tries, first = server.tries(), first_try(server)
    let_not_end(server, {0}, lambda numbers: 0.5 if 400 in numbers else 0.02)
    with pytest.raises(TryAgain):
        await tries.commit(calls(500), first)
    refused = await tries.commit(calls(500), first._replace(is_repeated=True))
    assert names(refused) == {0: "StorageUnreachable"}


async def test_a_late_try_that_begins_at_the_end_has_the_time_of_a_try(server: Server) -> None:
    tries = server.tries()
    let_wait(server, 1, took_s=TRY_S / 4)
    this = late_try(server, RETRY_S - 1)
    assert names(await tries.commit(calls(4), this)) == {1: "StorageLocked"}


async def test_a_connection_that_is_lost_is_not_due_to_a_call(server: Server) -> None:
    tries = server.tries()

    def lose(numbers: list[int], progress: Progress) -> None:
        raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")

    server.write = lose
    this = late_try(server)
    with pytest.raises(TimeoutError):
        await tries.commit(calls(4), this)
    assert server.tried == [[0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("count", "limits_statements", "cause", "has_the_rest"),
    [
        (1, True, TimeoutError(), True),
        (8, False, TimeoutError(), True),
        (8, True, TimeoutError(), False),
        (1, True, TimeoutError(errno.ETIMEDOUT, "Connection timed out"), False),
        (1, True, locked(), False),
    ],
    ids=["alone", "can't be limited", "can be written in parts", "connection lost", "locked"],
)
async def test_a_try_after_one_that_took_too_long_has_the_rest_of_the_time(
    count: int, limits_statements: bool, cause: Exception, has_the_rest: bool, server: Server
) -> None:
    server.limits_statements = limits_statements
    tries = server.tries()
    first = first_try(server)

    def cut(numbers: list[int]) -> None:
        raise TryAgain(StorageUnreachable("cut off")) from cause

    server.commit = cut
    with pytest.raises(TryAgain):
        await tries.commit(calls(count), first)
    server.commit = lambda numbers: None
    server.now += TRY_S
    await tries.commit(calls(count), first._replace(is_repeated=True))
    assert server.within_s == [TRY_S, RETRY_S - TRY_S if has_the_rest else TRY_S]


@pytest.mark.parametrize(
    ("sizes", "least_s"),
    [({"size_bytes": 10 * 1024 * 1024}, 20.0), ({"record_count": 10_000}, 20.0), ({}, 0.0)],
    ids=["bytes", "records", "usual"],
)
async def test_a_large_batch_has_more_time(
    sizes: dict[str, int], least_s: float, server: Server
) -> None:
    await server.tries().commit(calls(2, **sizes), first_try(server))
    extra_s = server.within_s[0] - TRY_S
    assert least_s <= extra_s <= least_s * 1.01
