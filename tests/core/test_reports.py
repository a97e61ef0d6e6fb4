"""Reports: keyword-only frozen dataclasses with a docstring for each field."""

import ast
import dataclasses
import pickle
import sys
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import async_history
import async_history.postgres
import async_history.sqlite
from async_history import HistoryRecord, Message, PruneReport

WITH_MEM0S_FIELDS = (HistoryRecord, Message)
"""Users make these, with mem0's columns in mem0's order."""
REPORTS = sorted(
    {
        value
        for module in (async_history, async_history.sqlite, async_history.postgres)
        for name in module.__all__
        if dataclasses.is_dataclass(value := getattr(module, name))
        and value not in WITH_MEM0S_FIELDS
    },
    key=repr,
)


@cache
def definitions() -> dict[str, ast.ClassDef]:
    """Return the package's dataclasses by name."""
    return {
        node.name: node
        for path in Path(async_history.__file__).parent.rglob("*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
        and "dataclass" in map(decorator_name, node.decorator_list)
    }


def decorator_name(decorator: ast.expr) -> str:
    """Return the last part of a decorator's name."""
    return ast.unparse(decorator).partition("(")[0].rpartition(".")[2]


def documented(report: type) -> set[str]:
    """Return the fields that have a docstring right below them."""
    definition = definitions()[report.__name__]
    found: set[str] = set()
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
        ):
            found.add(field.target.id)
    return found


@pytest.mark.parametrize("report", REPORTS, ids=lambda one: one.__name__)
def test_a_report_is_frozen_keyword_only_and_documented(report: Any) -> None:
    parameters = report.__dataclass_params__
    assert parameters.frozen
    names = {field.name for field in dataclasses.fields(report)}
    assert all(field.kw_only for field in dataclasses.fields(report))
    assert documented(report) == names
    assert "__dict__" not in dir(report), "it has slots"


def test_every_report_is_checked() -> None:
    assert {getattr(report, "__name__", "") for report in REPORTS} >= {
        *("AdoptionReport", "CheckReport", "CopyReport", "Erasure", "ErasureReport"),
        *("HistoryStats", "MemoryDiff", "Page", "PruneReport", "WriterStats"),
    }


def test_a_report_is_pickled() -> None:
    report = PruneReport(done=True, before=datetime(2026, 1, 1, tzinfo=UTC), records=3)
    assert pickle.loads(pickle.dumps(report)) == report  # noqa: S301 - of our own
    assert sys.modules[PruneReport.__module__].PruneReport is PruneReport
