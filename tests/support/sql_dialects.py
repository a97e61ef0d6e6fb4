"""Compiles Core statements for databases without a server in the tests, and finds refused ones."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Boolean, Delete, Insert, Select, Table, Text, Update
from sqlalchemy.engine import Dialect, make_url
from sqlalchemy.exc import CompileError
from sqlalchemy.sql import operators, visitors
from sqlalchemy.sql.compiler import ExpandedState
from sqlalchemy.sql.elements import BinaryExpression, BindParameter, UnaryExpression
from sqlalchemy.sql.functions import FunctionElement

from async_history._sql.tables import PREFIX

DIALECTS = ("mysql", "mariadb", "postgresql", "sqlite", "oracle", "mssql")
_MOST_OF_IN = 1_000
"""The values of one IN (...) on Oracle."""
_MOST_PARAMETERS = 2_100
"""The parameters of one statement on SQL Server."""
_COMPARISONS = {
    *(operators.eq, operators.ne, operators.lt, operators.le, operators.gt, operators.ge),
    *(operators.in_op, operators.not_in_op, operators.is_distinct_from),
}


def dialect_of(name: str) -> Dialect:
    """Return a dialect that has not connected."""
    driver = {"oracle": "oracle+oracledb"}.get(name, name)
    return make_url(f"{driver}://").get_dialect()()


class StatementChecks:
    """Compiles statements for each dialect; `faults` says what a database would refuse.

    One that differs from an earlier one in its values only, and has as many, is not compiled again.
    """

    def __init__(self, dialects: Iterable[Dialect] | None = None) -> None:
        self.faults: list[str] = []
        self._seen: set[str] = set()
        self._shapes: set[object] = set()
        self._dialects = list(map(dialect_of, DIALECTS) if dialects is None else dialects)

    def before_execute(
        self,
        connection: object,
        statement: Any,
        rows: Sequence[Mapping[str, Any]],
        row: Mapping[str, Any],
        options: object,
    ) -> None:
        """Check a statement that an engine is about to execute: SQLAlchemy's event."""
        if not isinstance(statement, Select | Insert | Update | Delete):
            return
        given = rows or [row]
        shape = _shape(statement, given)
        if shape in self._shapes:
            return
        if shape is not None:
            self._shapes.add(shape)
        if _is_ours(statement):
            self.check(statement, *given)

    def check(self, statement: Any, *rows: Mapping[str, Any]) -> None:
        """Check a statement with its parameters, one row or several."""
        given = dict(rows[0]) if rows else {}
        known: str | None = None
        for dialect in self._dialects:
            try:
                compiled = statement.compile(
                    dialect=dialect,
                    column_keys=sorted(given) or None,
                    for_executemany=len(rows) > 1,
                )
                whole = compiled.construct_expanded_state(given)
            except CompileError as error:
                self.faults.append(f"{dialect.name}: {error}")
                continue
            if known is None:
                known = str(compiled)
                self.faults += [f"{fault}: {known}" for fault in _lists(whole)]
                if known in self._seen:
                    return  # only its values may differ
                self._seen.add(known)
                self.faults += [f"{fault}: {known}" for fault in _faults(statement)]


def _shape(statement: Any, rows: Sequence[Mapping[str, Any]]) -> object:
    """Return what two statements have in common that differ in their values only, or None if
    SQLAlchemy can't tell."""
    key = statement._generate_cache_key()
    if key is None:
        return None
    values = [*(one.effective_value for one in key.bindparams), *rows[0].values()]
    numbers = tuple(len(one) if isinstance(one, list | tuple) else 1 for one in values)
    return key.key, numbers, *rows[0], len(rows) > 1


def _lists(whole: ExpandedState) -> Iterator[str]:
    """Yield the parts of a compiled statement that are too long."""
    if len(whole.parameters) > _MOST_PARAMETERS:
        yield f"{len(whole.parameters):,} parameters"
    for values in whole.parameter_expansion.values():
        if len(values) > _MOST_OF_IN:
            yield f"IN of {len(values):,} values"


def _is_ours(statement: Any) -> bool:
    """Return whether a statement uses a table of ours, and is not one of SQLAlchemy's own."""
    elements = visitors.iterate(statement)
    return any(isinstance(one, Table) and one.name.startswith(PREFIX) for one in elements)


def _faults(statement: Any) -> Iterator[str]:
    """Yield the parts of a statement that Oracle or SQL Server does not accept."""
    for element in visitors.iterate(statement):
        if isinstance(element, BinaryExpression) and element.operator in _COMPARISONS:
            for side in (element.left, element.right):
                if isinstance(side.type, Text):
                    yield f"a long text is compared ({side})"
        if isinstance(element, FunctionElement):
            for given in element.clauses:
                if isinstance(given, BindParameter) and given.value == "":
                    yield "an empty text, which is NULL on Oracle"
        if isinstance(element, Select):
            for column in element.selected_columns:
                if isinstance(column.type, Boolean):
                    yield f"a condition is selected ({column})"
                if element._distinct and isinstance(column.type, Text):
                    yield f"distinct long texts ({column})"
            for clauses in (element._order_by_clauses, element._group_by_clauses):
                for one in clauses:
                    column = one.element if isinstance(one, UnaryExpression) else one
                    if isinstance(column.type, Text):
                        yield f"a long text is sorted or grouped ({column})"
