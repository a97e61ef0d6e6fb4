"""`async-history copy` and `backup`."""

import contextlib
import dataclasses
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from time import monotonic
from typing import BinaryIO, Final

import typer

from async_history import (
    CopyReport,
    HistoryManager,
    InvalidInput,
    JsonLines,
    RecordSource,
    copy_history,
    dump_lines,
    open_history,
)
from async_history._core.wording import counted
from async_history._opening import is_server, postgres_schema, sqlite_file, without_secrets
from async_history._postgres.connecting.url import server_url
from async_history.cli import stores
from async_history.cli.line_reader import LINE_BYTES, Lines, open_lines
from async_history.cli.terminal import echo_json, print_error, show_progress, show_share
from async_history.cli.termination import early_end, run

_LINES: Final = ".jsonl"


def copy(source: str, target: str, *, as_json: bool) -> int:
    """Copy a history; return the exit status."""
    if _is_lines(target):
        return run(_dump(source, target))
    try:
        report = run(_copy(source, target))
    except KeyboardInterrupt:
        word, status = early_end()
        print_error(f"{word}; the same command continues where this one ended")
        return status
    if as_json:
        echo_json(dataclasses.asdict(report))
    else:
        typer.echo(_summary(report, target))
    return 0


def _summary(report: CopyReport, target: str) -> str:
    text = (
        f"{counted(report.records, 'record of it is', 'records of it are')} in "
        f"{without_secrets(target)}, {report.written:,} written now, compared one by one\n"
        f"SHA-256 {report.digest}"
    )
    if report.scopes:
        text += f"\n{counted(report.scopes, 'message buffer')}"
    if report.scopes_left:
        text += f", {report.scopes_left:,} left as they are: the target has other messages there"
    return text


def _is_lines(name: str) -> bool:
    return name == "-" or ("://" not in name and name.endswith(_LINES))


async def _copy(source: str, target: str) -> CopyReport:
    done = 0

    def note(records: int, _: int | None) -> None:
        nonlocal done
        done = records

    async with AsyncExitStack() as stack:
        _require_two(source, target)
        opened = await _open_source(source, stack)
        history = await _open_target(target, opened, stack)
        total = await opened.count_history() if isinstance(opened, HistoryManager) else None
        async with show_progress(total, lambda: done, "records"):
            return await copy_history(opened, history, on_progress=note)


def _require_two(source: str, target: str) -> None:
    """Refuse to copy a history to itself."""
    if _is_lines(source):
        return
    files = sqlite_file(source), sqlite_file(target)
    is_one = source == target
    if files[0] is not None and files[1] is not None:
        with contextlib.suppress(FileNotFoundError):
            is_one = os.path.samefile(files[0], files[1])
    elif is_server(source) and is_server(target) and not _foreign_table(source):
        is_one = open_history(source).backend.store_name == open_history(target).backend.store_name
    if is_one:
        raise InvalidInput("the source and the target of the copy are the same history")


def _foreign_table(source: str) -> str | None:
    """Return the table of another project that a URL of PostgreSQL names."""
    return server_url(source).options.get("table") if postgres_schema(source) else None


async def _open_source(source: str, stack: AsyncExitStack) -> HistoryManager | RecordSource:
    """Open the named source; the stack closes it."""
    if _is_lines(source):
        file = open_lines(source)
        return JsonLines(_texts(Lines(stack.enter_context(closing(file)))))
    if table := _foreign_table(source):
        from async_history._transfer.foreign_table import ForeignTable

        return ForeignTable(source, table=table)
    return await stack.enter_async_context(stores.open_to_read(source))


async def _open_target(
    target: str, source: HistoryManager | RecordSource, stack: AsyncExitStack
) -> HistoryManager:
    """Open the target; the stack closes it. The copy of an encrypted history is encrypted.

    Raises:
        InvalidInput: the target has records and, unlike the source, is not encrypted.
    """
    history = await stack.enter_async_context(stores.opened(target))
    if not stores.is_encrypted(source) or stores.is_encrypted(history):
        return history
    async for _ in history.query_history(limit=1):
        raise InvalidInput(
            f"{without_secrets(target)} is not encrypted, and the source of the copy is: encrypt "
            f"it first (async-history --keys-file FILE encrypt --db {without_secrets(target)})"
        )
    await history.aclose()
    return await stack.enter_async_context(stores.opened(target, keys=stores.keys()))


async def _texts(lines: Lines) -> AsyncIterator[bytes]:
    async for number, line in lines:
        if line is None:
            raise InvalidInput(f"line {number}: longer than {LINE_BYTES >> 20} MiB")
        yield line


async def _dump(source: str, target: str) -> int:
    """Write a history as JSON lines; return the exit status."""
    done = 0
    async with AsyncExitStack() as stack:
        history = await _open_source(source, stack)
        if not isinstance(history, HistoryManager):
            raise InvalidInput(
                "only a history can be written as JSON lines; copy the source into a history first"
            )
        file = stack.enter_context(_stdout() if target == "-" else _new_file(Path(target)))
        total = await history.count_history()
        async with show_progress(total, lambda: done, "records", is_wanted=target != "-"):
            async for line in dump_lines(history):
                file.write(line.encode() + b"\n")
                done += 1
    if target != "-":
        typer.echo(f"{counted(done, 'record')} in {target}")
    return 0


@contextmanager
def _stdout() -> Iterator[BinaryIO]:
    yield sys.stdout.buffer
    sys.stdout.buffer.flush()


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """Create a file that only its owner can read; remove it again if the body fails."""
    with open(path, "xb", opener=partial(os.open, mode=0o600)) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def backup(url: str, path: str, *, as_json: bool) -> int:
    """Copy a live file; return the exit status."""
    file = sqlite_file(url)
    if file is None:
        raise InvalidInput(
            "backup copies a file; for a server's history use its own tools (pg_dump), or "
            "`async-history copy`"
        )
    begun = monotonic()
    run(_backup(file, path))
    seconds, size = monotonic() - begun, Path(path).stat().st_size
    if as_json:
        echo_json({"path": path, "bytes": size, "seconds": seconds})
    else:
        typer.echo(f"{path}: {size:,} bytes, {file} as it was {seconds:.1f} s ago")
    return 0


async def _backup(file: Path, path: str) -> None:
    async with (
        stores.opened(file, create=False, migrate=False) as history,
        show_share("the file") as note,
    ):
        await history.backup(path, on_progress=note)
