"""Every option and argument is checked where it is given: by name, before anything is opened."""

import asyncio
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest

from async_history import (
    HistoryManager,
    HistoryOptions,
    InvalidInput,
    check_history,
    copy_history,
    dump_lines,
    open_history,
)
from async_history._null import NullHistoryManager
from async_history.blocking import BlockingHistoryManager
from async_history.encryption import KeyRing
from async_history.postgres import ForeignTable, PostgresHistoryManager
from async_history.sql import SqlHistoryManager
from async_history.sqlite import SQLiteHistoryManager, adopt

pytestmark = pytest.mark.once

NOWHERE = "postgresql://agent:secret@127.0.0.1:9/app"
MANAGERS: Mapping[type[HistoryManager], Callable[[Path], tuple[Any, ...]]] = {
    SQLiteHistoryManager: lambda folder: (folder / "history.db",),
    NullHistoryManager: lambda _: (),
    PostgresHistoryManager: lambda _: (NOWHERE,),
}
BAD: Mapping[Any, tuple[Any, ...]] = {
    bool: (None, 0, 1, "no", "true", 1.0, []),
    int: (None, True, False, "5", 1.5, 5.0, -1, 10**30, math.nan, math.inf, [5]),
    float: (None, True, "30", -1, -0.5, math.nan, math.inf, 10**400, timedelta(seconds=1), [1]),
    str: (None, 5, b"text", "", "a\0b", ["text"], "\ud800"),
    KeyRing: (True, "secret", b"secret" * 6, {"one": bytes(32)}),
    Literal: (None, "fulll", "FULL", 1, [], True),
}
"""Bad values, by the type of the option."""


def options_of(manager: type[HistoryManager]) -> dict[str, Any]:
    """Return the types of a constructor's options, by name."""
    kinds = get_type_hints(manager.__init__)
    parameters = inspect.signature(manager).parameters.values()
    return {one.name: kinds[one.name] for one in parameters if one.kind is one.KEYWORD_ONLY}


def bad_values(kind: Any) -> Iterator[Any]:
    """Yield values that an option of this type must refuse."""
    kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    for one in kinds:
        if one is not type(None):
            bad = BAD[Literal if get_origin(one) is Literal else one]
            yield from (value for value in bad if not (value is None and type(None) in kinds))


CASES = [
    pytest.param(manager, name, value, id=f"{manager.__name__} {name}={value!r:.20}")
    for manager in MANAGERS
    for name, kind in options_of(manager).items()
    if name != "pool"
    for value in bad_values(kind)
]


@pytest.mark.parametrize(("manager", "name", "value"), CASES)
def test_every_option_is_checked(
    manager: type[HistoryManager], name: str, value: Any, tmp_path: Path
) -> None:
    """A new option is included automatically: its type says what it must refuse."""
    with pytest.raises(InvalidInput, match=name) as refused:
        manager(*MANAGERS[manager](tmp_path), **{name: value})
    assert "secret" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_every_option_has_a_type() -> None:
    """`open_history` takes exactly the options of the managers."""
    known = get_type_hints(HistoryOptions)
    taken = {name: kind for manager in MANAGERS for name, kind in options_of(manager).items()}
    del taken["pool"]  # instead of a URL
    assert known == taken
    assert (
        get_type_hints(BlockingHistoryManager.__init__)["options"]
        == get_type_hints(open_history)["options"]
    )


@pytest.mark.parametrize("open_it", [open_history, BlockingHistoryManager])
@pytest.mark.parametrize("url", ["history.db", "memory://", "null://", NOWHERE])
def test_an_unknown_option_is_named(
    open_it: Callable[..., Any], url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput, match=r"'close_timeout'.*did you mean close_timeout_s\?"):
        open_it(url, close_timeout=5)
    with pytest.raises(InvalidInput, match="'path'"):
        open_it(url, path="elsewhere.db")
    with pytest.raises(InvalidInput, match="close_timeout_s must"):
        open_it(url, close_timeout_s="5")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("pool", ["pool", 5, object(), NOWHERE])
def test_a_pool_must_be_asyncpgs(pool: Any) -> None:
    with pytest.raises(InvalidInput, match="pool must"):
        PostgresHistoryManager(pool=pool)


class OddPath:
    """A path object whose path is anything."""

    def __init__(self, path: Any) -> None:
        self._path = path

    def __repr__(self) -> str:
        return "an odd path"

    def __fspath__(self) -> Any:
        return self._path


NO_PATHS: tuple[Any, ...] = (b"history.db", "", "a\0b", [], 5, True)
"""Neither a path nor what a path object may return."""
ODD_PATHS = tuple(map(OddPath, (*NO_PATHS, None)))


@pytest.mark.parametrize("take", [SQLiteHistoryManager, adopt, KeyRing.from_file])
@pytest.mark.parametrize("path", [*NO_PATHS, *ODD_PATHS])
def test_a_path_is_text(take: Callable[..., Any], path: Any) -> None:
    with pytest.raises(InvalidInput, match="path must"):
        take(path)


@pytest.mark.parametrize(
    "take",
    [
        open_history,
        BlockingHistoryManager,
        PostgresHistoryManager,
        SqlHistoryManager,
        ForeignTable,
        lambda path: asyncio.run(check_history(path)),
        lambda path: PostgresHistoryManager(NOWHERE, read_url=path),
    ],
)
@pytest.mark.parametrize("path", ODD_PATHS)
def test_a_path_object_without_a_path_is_refused_as_a_url(
    take: Callable[..., Any], path: Any
) -> None:
    with pytest.raises(InvalidInput, match=r"must|URL"):
        take(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("dry_run", value) for value in BAD[bool]),
        *(("backup", value) for value in BAD[bool]),
        *(("lock_timeout_s", value) for value in BAD[float]),
        ("on_progress", "print"),
    ],
)
def test_bad_arguments_of_adopt_are_refused(name: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=name):
        adopt(tmp_path / "history.db", **{name: value})
    assert not list(tmp_path.iterdir())


PRUNE = {"older_than": timedelta(days=1)}
ERASE = {"memory_ids": ["m"], "reason": "asked"}
ROLLBACK = {"to": datetime.now(UTC), "memory_ids": ["m"]}
ARGUMENTS: list[tuple[str, tuple[Any, ...], dict[str, Any], str, tuple[Any, ...]]] = [
    ("query_history", (), {}, "page_size", (*BAD[int], 0)),
    ("query_history", (), {}, "limit", tuple(one for one in BAD[int] if one is not None)),
    ("query_history", (), {}, "order", BAD[Literal]),
    ("query_history", (), {}, "memory_id", (5, True, b"m", [5], [None])),
    ("query_history", (), {}, "since", ("2026-01-01", 5, True)),
    ("query_history", (), {}, "event", ("add", 5, [], True)),
    ("query_history", (), {}, "actor_id", (5, b"a", "a\0b")),
    ("query_history", (), {}, "text", (5, b"a", "")),
    ("count_history", (), {}, "until", ("2026-01-01", 5, True)),
    ("follow", (), {}, "poll_interval_s", (*BAD[float], 0)),
    ("follow", (), {}, "memory_id", (5, b"m")),
    ("get_history", (), {}, "memory_id", (None, 5, b"m", ["m"])),
    ("get_last_messages", ("scope",), {}, "limit", BAD[int]),
    ("save_messages", (), {"session_scope": "s"}, "messages", (None, 5, "text", {"role": "user"})),
    ("batch_add_history", (), {}, "records", (None, 5, "text", {"memory_id": "m"})),
    ("batch_add_history", ([],), {}, "if_latest", (5, b"m", "", {})),
    ("prune", (), PRUNE, "keep_last", BAD[int]),
    ("prune", (), PRUNE, "dry_run", BAD[bool]),
    ("prune", (), PRUNE, "on_progress", (5, "print")),
    ("prune", (), {}, "older_than", (None, 5, "1d", timedelta(days=-1), timedelta.max)),
    ("erase", (), ERASE, "dry_run", BAD[bool]),
    ("erase", (), ERASE, "vacuum", BAD[bool]),
    ("erase", (), ERASE, "reason", (None, 5, "", b"asked")),
    ("erase", (), {"reason": "asked"}, "memory_ids", (None, 5, "m", {"m": 1}, b"m")),
    ("erase", (), {"reason": "asked"}, "session_scopes", (None, 5, "s", {"s": 1})),
    ("erase", (), {"reason": "asked"}, "actor_id", (5, "", b"a")),
    ("query_history", (), {}, "user_id", (5, "", b"a", "a\0b")),
    ("query_history", (), {}, "cause", (5, "x", {"x": None}, [("x", "y")])),
    ("count_history", (), {}, "app_id", (5, "")),
    ("follow", (), {}, "agent_id", (5, "")),
    ("memories", (), {}, "run_id", (5, "")),
    ("memories_at", (datetime.now(UTC),), {}, "cause", (5, "x")),
    ("add_history", ("m", None, "x", "ADD"), {}, "owner", (5, "ann", ["ann"])),
    ("add_history", ("m", None, "x", "ADD"), {}, "context", (5, "x", [], {"x": float("nan")})),
    ("update_history", ("m", "x"), {}, "cause", (5, "x", {"x": 1})),
    ("rollback", (), ROLLBACK, "to", (None, 1, "2026-01-01", datetime(2026, 1, 1))),  # noqa: DTZ001
    ("rollback", (), ROLLBACK, "dry_run", BAD[bool]),
    ("rollback", (), ROLLBACK, "actor_id", (5, b"a", "a\0b")),
    ("rollback", (), ROLLBACK, "on_progress", (5, "print")),
    ("rollback", (), {"to": datetime.now(UTC)}, "memory_ids", (None, 5, "m", b"m")),
    ("undo", (), {"run_id": "r"}, "dry_run", BAD[bool]),
    ("undo", (), {}, "run_id", (None, 5, "")),
    ("undo", (), {}, "cause", (None, 5, "x", {})),
    ("erase", (), {"reason": "asked"}, "record_ids", (None, 5, "r", {"r": 1})),
    ("erase", (), {"reason": "asked"}, "user_id", (5, "", b"ann")),
    ("memory_at", ("m",), {}, "when", (None, True, 0, -1, 1.5, "1")),
    ("restore", ("m",), {}, "to", (None, True, 0, "1")),
]


async def called(call: Callable[..., Any], *positional: Any, **arguments: Any) -> None:
    answer = call(*positional, **arguments)
    if inspect.isawaitable(answer):
        await answer


@pytest.mark.parametrize(
    ("call", "positional", "others", "name", "values"),
    [pytest.param(*case, id=f"{case[0]} {case[3]}") for case in ARGUMENTS],
)
async def test_every_argument_is_checked(
    call: str,
    positional: tuple[Any, ...],
    others: dict[str, Any],
    name: str,
    values: tuple[Any, ...],
) -> None:
    async with open_history("memory://") as history:
        await history.add_history("m", None, "likes tea", "ADD")
        for value in values:
            with pytest.raises(InvalidInput, match=name):
                await called(getattr(history, call), *positional, **{**others, name: value})
        (record,) = await history.get_history("m")
        assert record.new_memory == "likes tea"
        assert not await history.erasures()


async def test_bad_arguments_of_copies_and_backups_are_refused(tmp_path: Path) -> None:
    async with open_history("memory://") as source, open_history("memory://") as target:
        for value in (5, "print"):
            with pytest.raises(InvalidInput, match="on_progress"):
                await copy_history(source, target, on_progress=value)  # type: ignore[arg-type]
            with pytest.raises(InvalidInput, match="on_progress"):
                await source.backup(tmp_path / "b", on_progress=value)  # type: ignore[arg-type]
            with pytest.raises(InvalidInput, match="history must"):
                dump_lines(value)  # type: ignore[arg-type]
        for path in (*NO_PATHS, *ODD_PATHS, None):
            with pytest.raises(InvalidInput, match="path must"):
                await source.backup(path)
    assert not list(tmp_path.iterdir())


async def test_calls_of_another_kind_of_store_are_refused() -> None:
    async with open_history("null://") as history:
        with pytest.raises(InvalidInput, match="SQLite"):
            await history.backup("backup.db")
        with pytest.raises(InvalidInput, match="PostgreSQL"):
            await history.add_in_transaction(None, [])


def test_the_tables_have_every_argument() -> None:
    """Each argument of the contract that is a number or a flag is tried."""
    tried = {(call, name) for call, _, _, name, _ in ARGUMENTS}
    for call, function in vars(HistoryManager).items():
        if call.startswith("_") or not inspect.isfunction(function):
            continue
        for name, kind in typing.get_type_hints(function).items():
            if kind in (bool, int, float) and name != "return":
                assert (call, name) in tried
