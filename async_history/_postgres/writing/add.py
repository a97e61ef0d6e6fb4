"""The statements that add records, and the owners of new memories.

If the store has no owners, and no record of a batch has an owner, a context or a cause, the batch
is written by shorter statements without these columns.

Each statement compares `owners_state.number` with the cached number (see `owners`). If they differ,
it adds nothing: it divides by zero, or the number of added rows shows it.
"""

import enum
from collections.abc import Sequence
from functools import cache
from typing import Any, Final

from async_history._core.encryption.key_statements import MOST_USES
from async_history._core.encryption.sealed_records import SealedTexts
from async_history._core.ledger.leaves import Bundle
from async_history._core.records.owners import SCOPES
from async_history._core.records.records import (
    CAUSE,
    COLUMN_LIST,
    COLUMNS,
    CONTEXT,
    OWNER,
    Fields,
)
from async_history._core.writing.additions import fields_have_details
from async_history._postgres.detail_columns import (
    DETAIL_COLUMNS,
    OWNERS_NUMBER,
    SCOPE_LIST,
    OwnerByMemory,
    detail_columns,
    scope_columns,
)
from async_history._postgres.rows import (
    encodable_values_of,
    joined_columns,
    joined_texts,
    values_of,
)
from async_history._postgres.writing.erased_names import IS_ERASED
from async_history._postgres.writing.owners import OwnersPlan

Statement = tuple[str, Sequence[Any]]
"""SQL with a `{schema}` placeholder, and its arguments."""


class OwnersCheck(enum.Enum):
    """What a statement within a transaction compares with the plan of the owners."""

    NOTHING = enum.auto()
    """On a Citus cluster a statement can't compare, so the transaction has locked the number."""
    NUMBER = enum.auto()
    """The number of `owners_state`: the transaction has looked up the owners."""
    NUMBER_AND_NEW = enum.auto()
    """The number, and that the plan's new memories have no records: the owners are cached."""


_GIVEN: Final = (*COLUMNS, "moment")
_SELECTED: Final = """id, memory_id, old_memory, new_memory, event, created_at, updated_at,
    is_deleted::boolean, actor_id, role, moment::pg_catalog.timestamptz"""
_ROW: Final = f"{COLUMN_LIST}, occurred_at"
_NUMBER: Final = "(SELECT number FROM {schema}.owners_state)"
_STATE: Final = f"(SELECT {OWNERS_NUMBER} FROM {{schema}}.owners_state)"
"""NULL if the row is lost. Then nothing is added, and the look-ups that follow raise the error."""
_WITHOUT_OWNERS: Final = f" AND {_NUMBER} = 0::pg_catalog.int8"
_SEND_WARNINGS: Final = "pg_catalog.set_config('client_min_messages', 'warning', true)"
"""For a statement without a transaction: see `transaction`."""


def _unnested(names: Sequence[str], first: int, separator: int) -> str:
    """Return the SELECT list of columns that are each passed as one text: see `joined_columns`.

    An unnest in the SELECT list is not materialized first, unlike one in FROM. That saves a tenth
    of the statement's time. A column that is NULL as a whole is NULL in each row.

    Args:
        first: the number of the first column's parameter.
        separator: the number of the separator's parameter; the null's is the next one.
    """
    return ", ".join(
        f"pg_catalog.unnest(pg_catalog.string_to_array("
        f"${number}::pg_catalog.text, ${separator}, ${separator + 1})) AS {name}"
        for number, name in enumerate(names, start=first)
    )


def _all_or_none(statement: str, count: int, before: str = "") -> str:
    """Return a statement that adds all records or none, without a surrounding transaction.

    It adds fewer than `count` if a trigger leaves out a row, or if owners have changed. Then a
    division by zero rolls it back.
    """
    return f"""
WITH {before}added AS ({statement} RETURNING 1)
SELECT 1 / (pg_catalog.count(*) = ${count}::bigint)::integer, {_SEND_WARNINGS} FROM added
"""


def _with_keys(statement: str, count: int) -> str:
    """Return a statement of `_all_or_none` that also adds nothing if a data key is missing or
    retired.

    It has two more parameters: the ids of the keys, separated by commas, and their number.
    """
    return f"""{statement}HAVING 1 / ((
    SELECT pg_catalog.count(*) FROM {{schema}}.data_keys WHERE id = ANY(
        pg_catalog.string_to_array(${count + 1}::pg_catalog.text, ','::pg_catalog.text)
    ) AND uses < {MOST_USES}::pg_catalog.int8
) = ${count + 2}::bigint)::integer = 1
"""


_ADD_RECORDS: Final = f"""
INSERT INTO {{schema}}.history ({_ROW}) SELECT {_SELECTED}
FROM (SELECT {_unnested(_GIVEN, 1, len(_GIVEN) + 1)}) AS given WHERE id <> ''"""
_TYPES: Final = [
    "pg_catalog.bool" if name == "is_deleted" else "pg_catalog.text" for name in COLUMNS
]
_ADD_VALUES: Final = f"""
INSERT INTO {{schema}}.history ({_ROW})
SELECT {", ".join(f"${number}::{kind}" for number, kind in enumerate(_TYPES, start=1))}"""
_ADD_ONE: Final = f"{_ADD_VALUES}, $11::pg_catalog.text::pg_catalog.timestamptz WHERE true"
"""Its parameters are `values_of` a record."""
_ADD_LONE: Final = f"""{_ADD_VALUES}, $11::pg_catalog.timestamptz FROM {{schema}}.owners_state
WHERE 1 / (number = 0::pg_catalog.int8)::pg_catalog.int4 = 1
    AND pg_catalog.current_setting('synchronous_standby_names'::pg_catalog.text)
        = ''::pg_catalog.text"""
"""Its parameters are `encodable_values_of` a record.

It has no RETURNING, so it can't turn warnings on after a trigger that silences them. So it adds
nothing if the server has standbys to wait for. A table in FROM takes less than a subquery; if
`owners_state` has two rows, the second one violates the key of ids, or divides by zero.
"""
_COUNT: Final = len(_GIVEN) + 3
_ADD_ALL_OR_NONE: Final = _all_or_none(f"{_ADD_RECORDS}{_WITHOUT_OWNERS}", _COUNT)
_ADD_SEALED_ALL_OR_NONE: Final = _with_keys(_ADD_ALL_OR_NONE, _COUNT)

_WITH_DETAILS: Final = (*_GIVEN, *DETAIL_COLUMNS)
_SEPARATOR: Final = len(_WITH_DETAILS) + 1
_KNOWN: Final = _SEPARATOR + 2
_ERASED: Final = _KNOWN + 1
_NEW: Final = _ERASED + 1
_ADD_DETAILED: Final = f"""
INSERT INTO {{schema}}.history ({_ROW}, {", ".join(DETAIL_COLUMNS)})
SELECT {_SELECTED},
    {", ".join(f"{n}::bigint" if n.startswith("cause_") else n for n in DETAIL_COLUMNS)}
FROM (SELECT {_unnested(_WITH_DETAILS, 1, _SEPARATOR)}) AS given WHERE id <> ''"""
_AS_KNOWN: Final = (
    f" AND {_STATE} = ${_KNOWN}::pg_catalog.int8 AND NOT {IS_ERASED.format(digests=_ERASED)}"
)
_WITHOUT_RECORDS: Final = f""" AND NOT EXISTS (
    SELECT FROM pg_catalog.unnest(
        pg_catalog.string_to_array(${_NEW}::pg_catalog.text, ${_SEPARATOR}, ${_SEPARATOR + 1})
    ) AS named (name) CROSS JOIN LATERAL (
        SELECT FROM {{schema}}.history
        WHERE (memory_id, seq) >= (named.name, '{-(1 << 63)}'::pg_catalog.int8)
            AND (memory_id, seq) <= (named.name, '{(1 << 63) - 1}'::pg_catalog.int8)
        ORDER BY memory_id, seq LIMIT 1
    ) AS there
)"""
"""Whether none of the memories that are assumed to be new has records."""


def _add_owners(first: int, separator: int) -> str:
    """Return the INSERT of rows of `owners`. A memory that already has one violates the key."""
    names = ("memory_id", *SCOPES)
    return f"""
INSERT INTO {{schema}}.owners (memory_id, {SCOPE_LIST}) SELECT memory_id, {SCOPE_LIST}
FROM (SELECT {_unnested(names, first, separator)}) AS given WHERE memory_id <> ''"""


_DETAILED_COUNT: Final = _NEW + 1 + len(SCOPES)
_ADD_DETAILED_ALL_OR_NONE: Final = _all_or_none(
    f"{_ADD_DETAILED}{_AS_KNOWN}{_WITHOUT_RECORDS}",
    _DETAILED_COUNT,
    f"owned AS ({_add_owners(_NEW, _SEPARATOR)}), ",
)
_ADD_SEALED_DETAILED_ALL_OR_NONE: Final = _with_keys(_ADD_DETAILED_ALL_OR_NONE, _DETAILED_COUNT)
ADD_OWNERS: Final = _add_owners(1, len(SCOPES) + 2)
"""Its parameters are `owner_rows`."""
REPLACE_OWNERS: Final = f"""{ADD_OWNERS}
ON CONFLICT (memory_id) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in SCOPES)}"""


def owner_rows(owners: OwnerByMemory) -> tuple[str | None, ...]:
    """Return the arguments of `ADD_OWNERS`."""
    return joined_texts(_columns(owners))


def _columns(owners: OwnerByMemory) -> list[Sequence[str | None]]:
    return [list(owners), *scope_columns(owners.values())]


def _has_details(fields: Sequence[Fields], plan: OwnersPlan) -> bool:
    """Return whether records need the statements with owners, context and cause."""
    return bool(plan.number) or fields_have_details(fields)


@cache
def _leaves_first(sql: str, first: int, count: int) -> str:
    """Return a statement that also writes `count` bundles; `first` is their first parameter.

    The bundles are always written, so the statement has to add all records or none.
    """
    rows = ", ".join(
        f"(${at}::pg_catalog.text, ${at + 1}::pg_catalog.int8, ${at + 2}::pg_catalog.bytea,"
        f" ${at + 3}::pg_catalog.bool, ${at + 4}::pg_catalog.text)"
        for at in range(first, first + count * _BUNDLE, _BUNDLE)
    )
    leaves = f"""
WITH leaves AS (
    INSERT INTO {{schema}}.history_ledger (kind, size, hashes, is_keyed, names) VALUES {rows}
)"""
    return leaves + (f",{after}" if (after := sql.removeprefix(_WITH)) != sql else sql)


def with_leaves(statement: Statement, leaves: Sequence[Bundle]) -> Statement:
    """Return a statement of this module that also writes the leaves of its records."""
    if not leaves:
        return statement
    sql, arguments = statement
    values = [value for bundle in leaves for value in bundle]
    return _leaves_first(sql, len(arguments) + 1, len(leaves)), (*arguments, *values)


_BUNDLE: Final = len(Bundle._fields)
_WITH: Final = "\nWITH"


def plain(fields: Sequence[Fields], leaves: Sequence[Bundle]) -> Statement:
    """Return the statement that adds all records or none, without a transaction.

    The records have no details and stay in clear, and the store has no owners.
    """
    return with_leaves((_ADD_ALL_OR_NONE, (*joined_columns(fields, None), len(fields))), leaves)


def lone(fields: Fields) -> Statement | None:
    """Return the statement of `plain` for one record without leaves, on a server without standbys.

    None if it has details, or the driver can't encode its instant.
    """
    if not (fields[OWNER] is fields[CONTEXT] is fields[CAUSE] is None):
        return None
    values = encodable_values_of(fields)
    return None if values is None else (_ADD_LONE, values)


def without_transaction(
    fields: Sequence[Fields],
    texts: SealedTexts | None,
    plan: OwnersPlan,
    key_ids: Sequence[str],
    leaves: Sequence[Bundle],
) -> Statement:
    """Return the statement of `plain` for any records.

    Args:
        texts: the records' sealed texts; None if they are stored in clear.
        key_ids: the ids of the records' data keys, which the statement checks.
        leaves: the leaves of the records and the new owners.
    """
    keys = (",".join(key_ids), len(key_ids)) if key_ids else ()
    if not _has_details(fields, plan):
        sql = _ADD_SEALED_ALL_OR_NONE if keys else _ADD_ALL_OR_NONE
        return with_leaves((sql, (*joined_columns(fields, texts), len(fields), *keys)), leaves)
    details = detail_columns(fields, texts, plan.owners)
    *columns, separator, null = joined_columns(fields, texts, *details, *_columns(plan.new))
    own, new = columns[: len(_WITH_DETAILS)], columns[len(_WITH_DETAILS) :]
    arguments = (*own, separator, null, plan.number, plan.digests, *new, len(fields), *keys)
    sql = _ADD_SEALED_DETAILED_ALL_OR_NONE if keys else _ADD_DETAILED_ALL_OR_NONE
    return with_leaves((sql, arguments), leaves)


def within_transaction(
    fields: Sequence[Fields],
    texts: SealedTexts | None,
    plan: OwnersPlan,
    leaves: Sequence[Bundle],
    check: OwnersCheck,
) -> list[Statement]:
    """Return the statements that add records in a transaction.

    The last one adds the records. The caller has to check that its status is their number.

    Args:
        texts, leaves: see `without_transaction`.
        check: what has to be as in the plan; otherwise nothing is added.
    """
    if not _has_details(fields, plan):
        known = "" if check is OwnersCheck.NOTHING else _WITHOUT_OWNERS
        if len(fields) == 1 and texts is None:
            return [with_leaves((f"{_ADD_ONE}{known}", values_of(fields[0])), leaves)]
        return [with_leaves((f"{_ADD_RECORDS}{known}", joined_columns(fields, texts)), leaves)]
    statements: list[Statement] = []
    if plan.new:
        statements.append((ADD_OWNERS, owner_rows(plan.new)))
    details = detail_columns(fields, texts, plan.owners)
    *columns, separator, null = joined_columns(fields, texts, *details, list(plan.new))
    arguments: list[Any] = [*columns[: len(_WITH_DETAILS)], separator, null]
    sql = _ADD_DETAILED
    if check is not OwnersCheck.NOTHING:
        sql += _AS_KNOWN
        arguments += [plan.number, plan.digests]
    if check is OwnersCheck.NUMBER_AND_NEW and plan.new:
        sql += _WITHOUT_RECORDS
        arguments.append(columns[-1])
    return [*statements, with_leaves((sql, arguments), leaves)]
