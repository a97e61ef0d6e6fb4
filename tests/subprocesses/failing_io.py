"""Fails, or dies at, each write to a database in turn, and checks the outcomes that callers got.

    python -m tests.subprocesses.failing_io FOLDER KIND [STRIDE]

KIND is killed, opening, writing, erasing, encrypting, decrypting, rotating, replacing or
forgetting.

Started by `run_failing`, with the compiled failing_io.c loaded before libc. It forks a child for
each case and prints, as JSON, the number of cases of each outcome. A failed assertion ends it.
"""

import asyncio
import errno
import json
import mmap
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Final

# Imported before the program forks, as in `opened`.
import cryptography.hazmat.primitives.ciphers.aead  # noqa: F401

from async_history import CommitUnknown, HistoryManager, HistoryRecord, StorageError
from tests.subprocesses import processes
from tests.subprocesses.changing_keys import (
    check_changed,
    check_forgotten,
    forget,
    forget_again,
    replace,
    replace_again,
    rotate,
    rotate_again,
)
from tests.subprocesses.checks import (
    Wrote,
    check_index,
    check_levels,
    check_messages,
    check_sound,
    check_submissions,
    looking,
    texts,
)
from tests.subprocesses.encrypting import (
    check_decrypted,
    check_encrypted,
    decrypt,
    decrypt_again,
    encrypt,
    encrypt_again,
)
from tests.subprocesses.erasing import (
    check_gone,
    check_pruned_and_erased,
    prune_and_erase,
    prune_and_erase_again,
)
from tests.subprocesses.opened import opened
from tests.subprocesses.taking_back import check_taken_back, take_back, take_back_again

WRITES, SYNCS, SIZES, REMOVALS = 1, 2, 4, 8
ALL: Final = WRITES | SYNCS | SIZES | REMOVALS
KILL: Final = 0
"""Kill the process instead of an error."""
FOREVER: Final = 1 << 30

Rule = tuple[int, int, int, int]
"""Kinds of calls, how many of them pass, how many fail after that, and with which error."""

_CONTROL: Final = struct.Struct("=17i")
_TIMEOUT_S: Final = 0.1
"""How long a commit with an unknown outcome is retried."""


class Faults:
    """The rules of failing_io.c, in memory that it shares with this process and its children."""

    def __init__(self) -> None:
        file = os.open(os.environ["FAILING_IO"], os.O_RDWR)
        self._control = mmap.mmap(file, _CONTROL.size)
        os.close(file)

    def arm(self, *rules: Rule) -> None:
        """Apply these rules from now on, one after the other, counting from zero; no rules end the
        faults."""
        failed = 0 if rules else self.failed
        numbers = [number for rule in rules for number in rule]
        self._control[:] = _CONTROL.pack(failed, *numbers, *[0] * (16 - len(numbers)))

    @property
    def failed(self) -> int:
        """How many calls have failed since the rules were armed."""
        failed: int = _CONTROL.unpack(self._control[:])[0]
        return failed


def compiler() -> str | None:
    """Return the C compiler's command, if there is one."""
    return shutil.which("cc") or shutil.which("gcc")


def run_failing(folder: Path, *arguments: object, timeout_s: float) -> Counter[str]:
    """Compile the library, run this program with it, and return how often each outcome happened."""
    library, control = folder / "failing_io.so", folder / "control"
    source = Path(__file__).with_suffix(".c")
    subprocess.run(
        [str(compiler()), "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True
    )
    control.write_bytes(bytes(_CONTROL.size))
    env = {"LD_PRELOAD": str(library), "FAILING_IO": str(control)}
    answer = processes.run("failing_io", folder, *arguments, env=env, timeout_s=timeout_s)
    return Counter(json.loads(answer))


Report = Callable[[str], None]
Program = Callable[[Path, Report], Coroutine[Any, Any, None]]


class Case:
    """One child: the file that it wrote, and the outcome that it reported for each submission."""

    def __init__(self, folder: Path, faults: Faults, child: Program) -> None:
        folder.mkdir()
        self.path = folder / "history.db"

        def run_child(pipe: int) -> None:
            def report(line: str) -> None:
                os.write(pipe, f"{line}\n".encode())

            asyncio.run(child(self.path, report))

        report, self.status = processes.read_to_the_end(*processes.forked(run_child))
        assert self.status in (0, -signal.SIGKILL)
        self.failed = faults.failed
        faults.arm()
        self.lines = report.decode().splitlines()
        self.outcomes: dict[Wrote, str] = {}
        for outcome, *values in map(str.split, self.lines):
            if outcome in ("wrote", "refused", "unknown"):
                self.outcomes[Wrote(*map(int, values))] = outcome

    def check(self) -> None:
        """Check that each submission has its caller's outcome, and is whole if that is unknown."""
        with looking(self.path, "rw") as connection:
            check_sound(connection)
            tables = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'history'")
            if not tables.fetchone():
                assert "opened" not in self.lines
                return
            found = check_submissions(texts(connection))
            for wrote, outcome in self.outcomes.items():
                assert outcome != "wrote" or wrote in found, f"acked and lost: {wrote}"
                assert outcome != "refused" or wrote not in found, f"refused and there: {wrote}"
            check_messages(connection, {})
            check_index(connection)
            check_levels(connection)
        shutil.rmtree(self.path.parent)


def outcome_of(result: BaseException | None) -> str:
    """Return the name of a call's outcome; an outcome other than these three is a fault."""
    if result is None:
        return "wrote"
    if isinstance(result, CommitUnknown):
        assert result.ids
        return "unknown"
    if isinstance(result, StorageError):
        return "refused"
    raise result


async def submit(
    history: HistoryManager, wrote: Wrote, if_latest: HistoryRecord | None = None
) -> BaseException | None:
    """Write a submission with ids, so that it may be written again."""
    records = [
        {
            "id": f"id {wrote.text(index)}",
            "memory_id": f"m{index}",
            "new_memory": wrote.text(index),
            "event": "UPDATE",
        }
        for index in range(wrote.size)
    ]
    try:
        await history.batch_add_history(records, if_latest=if_latest)
    except Exception as error:
        return error
    return None


async def save(history: HistoryManager, scope: str) -> None:
    """Save two messages, the first of their scope."""
    try:
        await history.save_messages([{"content": f"{n} 1"} for n in range(2)], scope)
    except (StorageError, CommitUnknown):
        return


async def write_round(
    history: HistoryManager, number: int, report: Report, *, most: int = 3
) -> list[Wrote]:
    """Write from a few tasks at once, report the outcomes, and return the unknown ones."""
    wrotes = [Wrote(number, task, 0, size) for task, size in enumerate((1, most, 1))]
    *results, _ = await asyncio.gather(
        *(submit(history, wrote) for wrote in wrotes), save(history, f"s{number}")
    )
    unknown: list[Wrote] = []
    for wrote, result in zip(wrotes, results, strict=True):
        outcome = outcome_of(result)
        report(f"{outcome} {' '.join(map(str, wrote))}")
        if outcome == "unknown":
            unknown.append(wrote)
    return unknown


async def write_through(
    path: Path, report: Report, *, faults: Faults, rules: list[Rule], ending: str
) -> None:
    """Write while the rules apply; then die, or close, or go on without them."""
    async with opened(path, lock_timeout_s=_TIMEOUT_S) as history:
        report("opened")
        assert not await write_round(history, 0, report)
        faults.arm(*rules)
        unknown = await write_round(history, 1, report) + await write_round(history, 2, report)
        if ending == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif ending == "healed":
            faults.arm()
            assert not await write_round(history, 3, report), "writes resume"
            assert not [w for w in unknown if await submit(history, w)], (
                "unknown submissions may be written again"
            )
            await check_found(history, unknown)


async def check_found(history: HistoryManager, wrotes: list[Wrote]) -> None:
    """Check that each submission is there once: it was written again with the same ids."""
    found = Counter([record.new_memory async for record in history.query_history()])
    assert all(found[wrote.text(index)] == 1 for wrote in wrotes for index in range(wrote.size))


async def open_write_close(path: Path, report: Report) -> None:
    """Open a new file, write a little, and close."""
    async with opened(path, lock_timeout_s=_TIMEOUT_S) as history:
        report("opened")
        await write_round(history, 0, report)
        await write_round(history, 1, report, most=700)
        latest = (await history.get_history("m1"))[-1]
        wrote = Wrote(2, 0, 0, 700)
        report(f"{outcome_of(await submit(history, wrote, latest))} {' '.join(map(str, wrote))}")
        report("closing")
    report("closed")


async def open_twice(path: Path, report: Report, *, faults: Faults) -> None:
    """Open a new file, which fails with a typed error; then open it without the faults."""
    try:
        async with opened(path, lock_timeout_s=_TIMEOUT_S) as history:
            report("opened early" if faults.failed == 0 else "opened")
            faults.arm()
            await write_round(history, 0, report)
    except StorageError:
        report("refused-opening")
        faults.arm()
        await open_write_close(path, report)


def main(folder: Path, what: str, stride: int = 1) -> None:
    """Run all cases of one kind, or every STRIDEth, and print the counts."""
    faults = Faults()
    start = random.randrange(stride)  # noqa: S311 - a test's random choices
    kinds: dict[str, Callable[[], Counter[str]]] = {
        "killed": lambda: killed(folder, faults, count(start, stride)),
        "opening": lambda: opening(folder, faults, start, stride),
        "writing": lambda: writing(folder, faults, stride),
        "erasing": lambda: erasing(folder, faults, count(start, stride)),
        **dict.fromkeys(_CHANGES, lambda: changing(what, folder, faults, count(start, stride))),
    }
    counts = kinds[what]()
    print(json.dumps(counts))  # noqa: T201 - its output


def killed(folder: Path, faults: Faults, skips: Iterable[int]) -> Counter[str]:
    """Die at each call in turn, from the opening of a new file to the end of its close."""
    counts: Counter[str] = Counter()
    for skip in skips:
        faults.arm((ALL, skip, 1, KILL))
        case = Case(folder / str(skip), faults, open_write_close)
        counts[case.lines[-1].split()[0] if case.lines else "opening"] += 1
        if case.path.exists():
            case.check()
        if not case.status:
            break
    return counts


def opening(folder: Path, faults: Faults, start: int, stride: int) -> Counter[str]:
    """Fail each call of an opening in turn; with a full disk, each call that needs space."""
    counts: Counter[str] = Counter()
    for error, kinds in ((errno.EIO, ALL), (errno.ENOSPC, WRITES | SIZES)):
        skip, first = start, ""
        while first != "opened early":
            faults.arm((kinds, skip, 1, error))
            case = Case(folder / f"{error}.{skip}", faults, partial(open_twice, faults=faults))
            case.check()
            assert case.status == 0
            first = case.lines[0]
            counts[first] += 1
            skip += stride
    return counts


def erasing(folder: Path, faults: Faults, skips: Iterable[int]) -> Counter[str]:
    """Die at each call of pruning and erasing in turn, and repeat both."""
    counts: Counter[str] = Counter()
    for skip in skips:

        def arm(skip: int = skip) -> None:
            faults.arm((ALL, skip, 1, KILL))

        case = Case(folder / str(skip), faults, partial(prune_and_erase, arm=arm))
        counts[case.lines[-1]] += 1
        check_pruned_and_erased(case.path, case.lines)
        _, again = processes.read_to_the_end(
            *processes.forked(lambda _, path=case.path: asyncio.run(prune_and_erase_again(path)))  # type: ignore[misc]
        )
        assert again == 0
        check_gone(case.path)
        shutil.rmtree(case.path.parent)
        if not case.status:
            break
    return counts


_CHANGES: Final[dict[str, tuple[Any, Any, Any]]] = {
    "encrypting": (encrypt, encrypt_again, check_encrypted),
    "decrypting": (decrypt, decrypt_again, check_decrypted),
    "rotating": (rotate, rotate_again, check_changed),
    "replacing": (replace, replace_again, check_changed),
    "forgetting": (forget, forget_again, check_forgotten),
    "taking back": (take_back, take_back_again, check_taken_back),
}


def changing(what: str, folder: Path, faults: Faults, skips: Iterable[int]) -> Counter[str]:
    """Die at each call of a change to a file in turn, and repeat the change."""
    program, begin_again, check = _CHANGES[what]
    counts: Counter[str] = Counter()
    for skip in skips:

        def arm(skip: int = skip) -> None:
            faults.arm((ALL, skip, 1, KILL))

        case = Case(folder / str(skip), faults, partial(program, arm=arm))
        counts[case.lines[-1]] += 1
        _, again = processes.read_to_the_end(
            *processes.forked(lambda _, path=case.path: asyncio.run(begin_again(path)))  # type: ignore[misc]
        )
        assert again == 0
        check(case.path)
        shutil.rmtree(case.path.parent)
        if not case.status:
            break
    return counts


_FAULTS: Final[dict[str, Callable[[int], list[Rule]]]] = {
    "one error": lambda skip: [(ALL, skip, 1, errno.EIO)],
    "full once": lambda skip: [(ALL, skip, 1, errno.ENOSPC)],
    "full": lambda skip: [(WRITES | SIZES, skip, FOREVER, errno.ENOSPC)],
    "broken": lambda skip: [(ALL, skip, FOREVER, errno.EIO)],
    "a sync fails, then full": lambda skip: [
        (SYNCS, 0, 1, errno.EIO),
        (WRITES, skip, FOREVER, errno.ENOSPC),
    ],
}
_LASTING_SKIPS: Final = 8
"""Permanent faults cost a timeout each time, so there are fewer of them."""


def writing(folder: Path, faults: Faults, stride: int) -> Counter[str]:
    """Fail each call of some commits in turn, with every kind of fault and of end."""
    counts: Counter[str] = Counter()
    for name, rules_at in _FAULTS.items():
        for ending in ("healed", "killed", "closed"):
            skip, failed = random.randrange(stride), 1  # noqa: S311 - a test's random choices
            lasts = any(times == FOREVER for _, _, times, _ in rules_at(0))
            while failed and not (lasts and skip >= _LASTING_SKIPS):
                child = partial(write_through, faults=faults, rules=rules_at(skip), ending=ending)
                case = Case(folder / f"{name}.{ending}.{skip}", faults, child)
                assert case.status == (-signal.SIGKILL if ending == "killed" else 0)
                case.check()
                counts.update(case.outcomes.values())
                failed = case.failed
                skip += stride
    return counts


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
