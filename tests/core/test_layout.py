"""Rules of the layout that no other check enforces."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

import async_history
from async_history._sqlite.index.validity import INDEX_TABLES

pytestmark = pytest.mark.once

PACKAGE: Final = Path(async_history.__file__).parent
INDEX: Final = "async_history._sqlite.index"
TESTS: Final = Path(__file__).parents[1]
TABLES: Final = re.compile("|".join(rf"\b{table}\b" for table in INDEX_TABLES))


def modules_outside(package: str) -> Iterator[tuple[Path, str]]:
    """Yield each module that is not in a package, with its text."""
    folder = PACKAGE.parent.joinpath(*package.split("."))
    for file in sorted(PACKAGE.rglob("*.py")):
        if folder not in file.parents:
            yield file, file.read_text(encoding="utf-8")


def imported(text: str) -> Iterator[str]:
    """Yield the modules that a module imports, and the names that it imports from them."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_the_index_is_used_through_its_package() -> None:
    inner = {f"{INDEX}.{file.stem}" for file in (PACKAGE / "_sqlite" / "index").glob("*.py")}
    assert len(inner) > 5
    for file, text in modules_outside(INDEX):
        assert not inner & set(imported(text)), file


def test_only_the_index_names_its_tables() -> None:
    for file, text in modules_outside(INDEX):
        assert not TABLES.findall(text), file


def test_no_test_module_imports_another() -> None:
    """Helpers, tables and cases that several modules use have a module of their own."""
    test_module = re.compile(r"tests\.(\w+\.)*test_")
    for file in sorted(TESTS.rglob("*.py")):
        names = imported(file.read_text(encoding="utf-8"))
        assert not [name for name in names if test_module.match(name)], file


def test_no_test_patches_a_private_constant() -> None:
    """Tests give limits to parts as arguments."""
    patch = re.compile(
        r"""setattr\(\s*[\w.]+,\s*["']_[A-Z]|^\s*(?!self\.)[\w.]+\._[A-Z][A-Z_]* =""", re.M
    )
    for file in sorted(TESTS.rglob("*.py")):
        assert not patch.findall(file.read_text(encoding="utf-8")), file
