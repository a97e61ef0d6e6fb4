"""The public API: every type of a public signature has a public name and module."""

import ast
import asyncio
import functools
import inspect
import pickle
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest

import async_history
import async_history.blocking
import async_history.encryption
import async_history.errors
import async_history.fastapi
import async_history.ledger
import async_history.mem0
import async_history.otel
import async_history.postgres
import async_history.sqlite
import async_history.web
from async_history import JsonLines, open_history
from async_history.blocking import BlockingHistoryManager
from async_history.postgres import ForeignTable, PostgresHistoryManager

PUBLIC_MODULES = (
    async_history,
    async_history.sqlite,
    async_history.postgres,
    async_history.blocking,
    async_history.ledger,
    async_history.mem0,
    async_history.encryption,
    async_history.fastapi,
    async_history.otel,
    async_history.web,
)
PUBLIC = {name for public_module in PUBLIC_MODULES for name in public_module.__all__}
NOT_FOR_USERS = {
    "HistoryManager": ("__init__", "backend", "store"),
    "SQLiteHistoryManager": ("store",),
    "PostgresHistoryManager": ("store",),
    "KeyRing": ("wrap", "unwrap"),
    "Encryption": ("__init__",),
    "BlockingEncryption": ("__init__",),
    "Follower": ("__init__",),
    "Ledger": ("__init__",),
    "BlockingLedger": ("__init__", "call_with"),
    "HistoryQuery": ("__init__",),
}
"""Members for authors of a backend, and types that only a manager makes."""


def functions() -> Iterator[tuple[str, FunctionType]]:
    """Yield the functions and methods that users call, under their public names."""
    for public_module in PUBLIC_MODULES:
        for name in public_module.__all__:
            value = getattr(public_module, name)
            if inspect.isfunction(value):
                yield f"{public_module.__name__}.{name}", value
            elif inspect.isclass(value):
                for member, method in methods(value):
                    yield f"{public_module.__name__}.{name}.{member}", method


def methods(public: type) -> Iterator[tuple[str, FunctionType]]:
    for base in public.__mro__:
        if base.__module__.startswith("async_history"):
            for name, member in vars(base).items():
                function = inspect.unwrap(getattr(member, "fget", member) or member)
                is_named = not name.startswith("_") or name in ("__init__", "__aiter__")
                if (
                    isinstance(function, FunctionType)
                    and is_named
                    and name not in NOT_FOR_USERS.get(base.__name__, ())
                ):
                    yield name, function


@functools.cache
def parsed(path: str) -> ast.Module:
    return ast.parse(Path(path).read_text(encoding="utf-8"))


def ours(tree: ast.Module) -> set[str]:
    """Return the names that a module defines or imports from this package, but no TypeVars."""
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("async_history"):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign) and "TypeVar(" not in ast.unparse(node.value):
            found |= {ast.unparse(target) for target in node.targets}
    return found


def types_of(function: FunctionType) -> set[str]:
    """Return the names of this package's types in a function's annotations, as written.

    A method that `takes` the arguments of another function counts as having them.
    """
    code = function.__code__
    if "async_history" not in code.co_filename:
        return set()  # a dataclass's __init__: its fields are checked
    tree = parsed(code.co_filename)
    lines = range(code.co_firstlineno, code.co_firstlineno + 12)  # below its decorators
    (node,) = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name == function.__name__
        and node.lineno in lines
    ][:1]
    returned = names_in([node.returns]) & ours(tree) if node.returns is not None else set()
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "takes":
            new_request = function.__globals__[ast.unparse(decorator.args[0])]
            return returned | types_of(new_request) - {
                new_request.__annotations__["return"].__name__
            }
    every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    every += [one for one in (node.args.vararg, node.args.kwarg) if one is not None]
    annotations = [argument.annotation for argument in every if argument.annotation is not None]
    return returned | names_in(annotations) & ours(tree)


def names_in(annotations: list[ast.expr]) -> set[str]:
    found: set[str] = set()
    for annotation in annotations:
        for node in ast.walk(annotation):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found |= names_in([ast.parse(node.value, mode="eval").body])
            elif isinstance(node, ast.Name):
                found.add(node.id)
    return found


def test_every_type_of_a_public_signature_is_public() -> None:
    missing: dict[str, set[str]] = {}
    looked_at = 0
    for name, function in functions():
        looked_at += 1
        if unknown := types_of(function) - PUBLIC:
            missing[name] = unknown
    assert missing == {}
    assert looked_at > 60


def test_every_type_of_a_public_field_is_public() -> None:
    package = Path(async_history.__file__).parent
    looked_at = 0
    for path in package.rglob("*.py"):
        tree = parsed(str(path))
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.name in PUBLIC:
                fields = [one for one in node.body if isinstance(one, ast.AnnAssign)]
                fields = [one for one in fields if not ast.unparse(one.target).startswith("_")]
                looked_at += len(fields)
                unknown = names_in([one.annotation for one in fields]) & ours(tree)
                assert unknown <= PUBLIC, f"{node.name}: {unknown - PUBLIC}"
    assert looked_at > 50


@pytest.mark.parametrize(
    "public_module", PUBLIC_MODULES, ids=lambda public_module: public_module.__name__
)
def test_public_names_have_their_public_module(public_module: ModuleType) -> None:
    for name in public_module.__all__:
        value = getattr(public_module, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            module = value.__module__
            assert module in {*(one.__name__ for one in PUBLIC_MODULES), "async_history.errors"}
            assert getattr(import_module(module), name) is value


def test_a_class_is_pickled_under_its_public_name() -> None:
    for public in (async_history.HistoryManager, PostgresHistoryManager, ForeignTable):
        assert b"._" not in pickle.dumps(public)


class TestRepr:
    async def test_of_a_manager_in_each_state(self, tmp_path: Path) -> None:
        path = tmp_path / "history.db"
        history = open_history(path)
        name = f"SQLiteHistoryManager {str(path)!r}"
        assert repr(history) == f"<{name} not open yet>"
        opening = asyncio.ensure_future(history.__aenter__())
        await asyncio.sleep(0)
        assert repr(history) == f"<{name} opening>"
        await opening
        assert repr(history) == f"<{name} open>"
        adding = [
            asyncio.ensure_future(history.add_history("m", None, "x", "ADD")) for _ in range(3)
        ]
        await asyncio.sleep(0)
        assert repr(history) == f"<{name} open, 3 queued>"
        assert await asyncio.to_thread(repr, history) == f"<{name} open>", "its loop's to read"
        await asyncio.gather(*adding)
        closing = asyncio.ensure_future(history.aclose())
        await asyncio.sleep(0)
        assert repr(history) == f"<{name} closing>"
        await closing
        assert repr(history) == f"<{name} closed>"
        assert str(path) in repr(open_history(path)), "a failed opening"

    def test_of_other_stores(self) -> None:
        assert repr(open_history("null://")) == "<NullHistoryManager 'null://' not open yet>"
        assert "in memory" in repr(open_history("memory://"))

    @pytest.mark.parametrize(
        "url",
        [
            "postgresql://ann:s3cret@host:5433/app",
            "postgresql://ann@host/app?password=s3cret",
            "postgresql+asyncpg://ann:s3c%23s3cret@one,two/app",
        ],
    )
    def test_a_repr_has_no_password(self, url: str) -> None:
        for thing in (open_history(url), ForeignTable(url), open_history(url).backend.where):
            assert "s3cret" not in repr(thing)
            assert "host" in repr(thing) or "one" in repr(thing)
        replica = open_history("postgresql://host/app", read_url=url)
        assert "s3cret" not in repr(replica)

    async def test_of_what_a_manager_returns(self) -> None:
        async with open_history("memory://") as history:
            follower = history.follow(memory_id="m")
            assert repr(follower) == "<Follower of memory 'm' after the beginning>"
            await history.add_history("m", None, "tea", "ADD")
            await anext(follower)
            assert repr(follower) == f"<Follower of memory 'm' after {follower.cursor}>"
            assert repr(history.follow()).startswith("<Follower of all memories after")
            query = history.query_history(memory_id=["a", "b"], text="tea", limit=3)
            assert repr(query) == (
                "<HistoryQuery memory_ids=('a', 'b') text='tea' order='oldest' limit=3>"
            )
            many = history.query_history(memory_id=[f"m{n}" for n in range(10_000)])
            assert len(repr(many)) < 200

    def test_of_a_blocking_manager(self, tmp_path: Path) -> None:
        history = BlockingHistoryManager(tmp_path / "history.db")
        name = f"BlockingHistoryManager {str(tmp_path / 'history.db')!r}"
        assert repr(history) == f"<{name} open>"
        history.close()
        assert repr(history) == f"<{name} closed>"

    def test_of_sources(self) -> None:
        assert repr(JsonLines([])) == "<JsonLines of list>"
        table = ForeignTable("postgresql://host/app", schema="public")
        assert repr(table).startswith('<ForeignTable "public"."memory_history" in ')


def test_every_public_name_exists() -> None:
    for public_module in PUBLIC_MODULES:
        assert sorted(set(public_module.__all__)) == sorted(public_module.__all__)
        names: Any = vars(public_module)
        assert all(name in names for name in public_module.__all__)


def test_every_parameter_is_described() -> None:
    """In the docstring, or in one that it refers to. Fields of dataclasses have their own."""
    missing: dict[str, list[str]] = {}
    looked_at = 0
    for name, function in functions():
        described = inspect.getdoc(function) or ""
        if name.endswith(".__init__") or "async_history" not in function.__code__.co_filename:
            continue  # inherited from mem0
        looked_at += 1
        named = set(re.findall(r"\w+", described))
        wanted = [p for p in inspect.signature(function).parameters if p not in ("self", "cls")]
        unknown = [parameter for parameter in wanted if parameter not in named]
        if unknown and not re.search("[Aa]s `|[Ss]ee (`|mem0's `|the constructor)", described):
            missing[name] = unknown
    assert missing == {}
    assert looked_at > 60
