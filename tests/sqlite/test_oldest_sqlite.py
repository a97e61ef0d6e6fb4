"""SQL for SQLite uses only features of 3.32, the oldest version that the README names."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import async_history._sqlite

pytestmark = pytest.mark.once

PACKAGE = Path(async_history._sqlite.__file__).parent
NEWER = {
    "3.33": r"\bUPDATE\s+(OR\s+\w+\s+)?[\w.{}]+\s+SET\b[^;()]*\bFROM\b",
    "3.35": r"\bRETURNING\b|\bDROP\s+COLUMN\b|\bAS\s+(NOT\s+)?MATERIALIZED\b",
    "3.37": r"\)\s*STRICT\b|\bsqlite_schema\b",
    "3.38": r"->|\bunixepoch\(|\bformat\(|\bjson_error_position\(",
    "3.39": r"\bIS\s+(NOT\s+)?DISTINCT\s+FROM\b|\b(RIGHT|FULL)\s+(OUTER\s+)?JOIN\b",
    "3.44": r"\bconcat(_ws)?\(|\bstring_agg\(",
}
"""The features of each version, as they are written in SQL."""
_IS_SQL = re.compile(r"\b(SELECT|INSERT|UPDATE|DELETE|CREATE|json_extract)\b")


def statements() -> Iterator[tuple[str, str]]:
    """Yield each text of the package that is SQL or a part of it, and its place."""
    for path in sorted(PACKAGE.rglob("*.sql")):
        lines = path.read_text().splitlines()
        yield path.name, "\n".join(line.partition("--")[0] for line in lines)
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [one.value for one in node.values if isinstance(one, ast.Constant)]
                text = " {} ".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            else:
                continue
            if _IS_SQL.search(text):
                yield f"{path.name}:{node.lineno}", text


def test_no_statement_needs_a_newer_sqlite() -> None:
    found = list(statements())
    assert len(found) > 100
    newer = [
        f"{where}: {version}"
        for where, text in found
        for version, pattern in NEWER.items()
        if re.search(pattern, text)
    ]
    assert newer == []


def test_newer_features_are_found() -> None:
    asked = {
        "3.33": "UPDATE main.a SET x = b.y FROM b",
        "3.35": "DELETE FROM a RETURNING id",
        "3.37": "CREATE TABLE a (b TEXT) STRICT",
        "3.38": "SELECT value ->> 0 FROM json_each(?)",
        "3.39": "SELECT a IS NOT DISTINCT FROM b",
        "3.44": "SELECT string_agg(a, ',')",
    }
    for version, sql in asked.items():
        assert re.search(NEWER[version], sql), version
