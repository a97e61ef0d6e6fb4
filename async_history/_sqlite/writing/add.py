"""The statements that add records: each inserts into a view of `write_program`.

See `commit` for why a batch is a single statement.
"""

import sqlite3
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from async_history._core.encryption.sealed_records import SealedValues
from async_history._core.ledger.leaves import Bundle, owner_bundle
from async_history._core.records.json_object import json_text
from async_history._core.records.owners import Owner
from async_history._core.records.records import (
    CAUSE,
    COLUMNS,
    CONTEXT,
    MEMORY_ID,
    Fields,
)
from async_history._core.writing.wakeups import WAKEUP_BATCH_MIN
from async_history._sqlite.index import (
    AS_NOTED,
    HAS_OWNERS,
    NEARLY_COMPLETE_ALONE,
    NONE_ERASED_SINCE,
    StoredOwner,
    cause_keys,
    memory_key,
    owner_entry,
)
from async_history._sqlite.key_statements import checking_keys, key_parameters
from async_history._sqlite.keys import SealedBatch
from async_history._sqlite.rows import NOT_YET, NULL, ROW_WIDTH, parameters, rows_sql
from async_history._sqlite.write_program import (
    ADD,
    BEGIN,
    CHECK,
    DETAILED_VIEW,
    DETAILED_WIDTH,
    END,
    FEW_DETAILED_VIEW,
    GIVE,
    KEYS,
    MORE_KEYS,
    PLAIN_VIEW,
)

STATEMENT_ROWS: Final = (1, 8, 32, 128, 512)
"""Records per statement. There are few sizes, so that each stays prepared; padding fills the
rest."""
_FEW: Final = 8
"""Up to this many records in a statement are indexed later, together with those that follow."""


def _add_sql(view: str, width: int, rows: int, condition: str, *, begins: bool) -> str:
    """Return the statement that inserts rows into a view, if a condition holds.

    SQLite calls `async_history_begun`, which is deterministic and has no arguments, once per
    statement. Small batches do without it: calling it means waiting for the GIL.
    """
    sql = f"""
        INSERT INTO {view} SELECT * FROM ({rows_sql(width, rows)})
        WHERE column{width} IS NOT NULL AND {condition}
    """
    return f"{sql} AND async_history_begun()" if begins else sql


_PLAIN: Final = {
    rows: _add_sql(
        PLAIN_VIEW,
        ROW_WIDTH,
        rows + 1,
        f"{NEARLY_COMPLETE_ALONE} AND NOT {HAS_OWNERS} AND {NONE_ERASED_SINCE}",
        begins=rows >= WAKEUP_BATCH_MIN,
    )
    for rows in STATEMENT_ROWS
}
"""Statements by their number of records."""
_DETAILED_ROWS: Final = (3, 6, 18, 34, 66, 130, 258, 514, 1_026, 2_050)
"""Rows of a statement with details: its records and owners, and its first and last row."""
_DETAILED: Final = {
    (is_indexed, may_have_owners, rows): _add_sql(
        DETAILED_VIEW if is_indexed else FEW_DETAILED_VIEW,
        DETAILED_WIDTH,
        rows,
        f"{NEARLY_COMPLETE_ALONE} AND {AS_NOTED}"
        if may_have_owners
        else f"{NEARLY_COMPLETE_ALONE} AND {AS_NOTED} AND NOT {HAS_OWNERS}",
        begins=rows >= WAKEUP_BATCH_MIN,
    )
    for is_indexed in (True, False)
    for may_have_owners in (True, False)
    for rows in _DETAILED_ROWS
}


_ROWS_A_RECORD: Final = 4
"""The most rows of a record with details: the record, its memory's owner, and two for more keys."""
_OTHER_PARAMETERS: Final = 4
_MIN_PARAMETERS: Final = 32_766
"""The parameters of a statement that SQLite allows since 3.32, if its build does not say more."""


def most_with_details(connection: sqlite3.Connection) -> int:
    """Return the most records with details that fit in one statement.

    SQLite allows 32,766 parameters; some builds, such as Debian's, allow more. A driver without
    `getlimit`, such as pysqlite3 in the place of sqlite3, can't be asked.
    """
    limit = _MIN_PARAMETERS
    if hasattr(connection, "getlimit"):
        limit = connection.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER)
    rows = max(n for n in _DETAILED_ROWS if n * DETAILED_WIDTH + _OTHER_PARAMETERS <= limit)
    return (rows - 2) // _ROWS_A_RECORD


HAS_OTHER_TRIGGERS: Final = """EXISTS (
    SELECT 1 FROM main.sqlite_master WHERE type = 'trigger' AND lower(tbl_name) = 'history'
        AND name NOT GLOB 'async_history_*'
)"""
"""SQL condition: the file's owner has triggers on `history`, which may skip, change or add rows."""


class Statement(NamedTuple):
    """A statement and its parameters."""

    sql: str
    parameters: Sequence[Any]

    def checking(self, keys: Sequence[str]) -> "Statement":
        """Return the statement that adds its records only if these keys are usable."""
        if not keys:
            return self
        return Statement(checking_keys(self.sql), (*self.parameters, *key_parameters(keys)))


class Noted(NamedTuple):
    """The state of erased names that records with mem0's columns only assume.

    Attributes:
        last: the last number of an erased name, which must be unchanged.
        begun: when the earliest call of a record may have begun, in microseconds since 1970. It
            must be after all erasures of names.
    """

    last: int = 0
    begun: int = 1 << 62


_NONE_GIVEN: Final[Mapping[str, StoredOwner]] = {}


class ExpectedOwners(NamedTuple):
    """The state of owners and erased names that a statement's records assume.

    Attributes:
        owners: the owner of each record's memory, as it is or as a record here gives it first.
        new: the memories that get their owner here.
        without: the memories that must have no owner; None if no memory in the store has one.
        noted: the last number of an erased name, which must be unchanged.
        begun: when the earliest call of a record may have begun, in microseconds since 1970. It
            must be after all erasures of names.
        given: the owners that memories get here.
        is_complete: whether each record itself contains the whole owner of its memory.

    `add_statement` removes from the two sets what its statement writes and checks.
    """

    owners: Sequence[StoredOwner | None]
    new: set[str]
    without: set[str] | None
    noted: int
    begun: int = 1 << 62
    given: Mapping[str, StoredOwner] = _NONE_GIVEN
    is_complete: bool = True

    def part(self, start: int, records: Sequence[Fields]) -> "ExpectedOwners":
        """Return the part for these records, which begin at `start`."""
        return self._replace(owners=self.owners[start : start + len(records)])


_NOTHING: Final = Noted()


def add_statement(
    records: Sequence[Fields],
    expected: ExpectedOwners | None,
    sealed: SealedBatch,
    *,
    noted: Noted = _NOTHING,
    has_triggers: bool = False,
    leaves: Bundle | None = None,
) -> Statement:
    """Return the statement that adds records.

    Args:
        records: at most the last of `STATEMENT_ROWS`.
        expected: None if no memory in the store has an owner, and no record has details.
        sealed: the next values in it are those of the records.
        noted: used instead, if `expected` is None.
        has_triggers: whether the file's owner has triggers on the table.
        leaves: the leaves of the records, for the file's ledger; None if it has none.
    """
    if expected is None:
        statement = _plain_statement(
            records, sealed.values, noted, leaves, has_triggers=has_triggers
        )
    else:
        statement = _detailed_statement(
            records, sealed.values, expected, leaves, has_triggers=has_triggers
        )
    return statement.checking(sealed.keys)


def _detailed_statement(
    records: Sequence[Fields],
    sealed: Iterator[SealedValues] | None,
    expected: ExpectedOwners,
    leaves: Bundle | None,
    *,
    has_triggers: bool,
) -> Statement:
    is_indexed = len(records) > _FEW and not has_triggers
    values = _detailed_parameters(records, sealed, expected, leaves, is_indexed=is_indexed)
    width = DETAILED_WIDTH
    needed = len(values) // width
    rows = _DETAILED_ROWS[bisect_left(_DETAILED_ROWS, needed)]
    values += (NULL,) * (width * (rows - needed))
    if has_triggers:
        view = FEW_DETAILED_VIEW
        return Statement(_add_sql(view, width, rows, "true", begins=False), values)
    values += (expected.noted, expected.begun)
    return Statement(_DETAILED[is_indexed, expected.without is not None, rows], values)


def _plain_statement(
    records: Sequence[Fields],
    sealed: Iterator[SealedValues] | None,
    noted: Noted,
    leaves: Bundle | None,
    *,
    has_triggers: bool,
) -> Statement:
    count = len(records)
    is_indexed = count > _FEW and not has_triggers
    rows = STATEMENT_ROWS[bisect_left(STATEMENT_ROWS, count)]
    values: list[Any] = []
    for record in records:
        values += parameters(record, None if sealed is None else next(sealed))
        values.append(memory_key(record[MEMORY_ID]) if is_indexed else NOT_YET)
    values += (*_leaf_columns(leaves, None), count if is_indexed else 0)
    values += (NULL,) * (ROW_WIDTH * (rows - count))
    if has_triggers:
        return Statement(_add_sql(PLAIN_VIEW, ROW_WIDTH, rows + 1, "true", begins=False), values)
    values += noted
    return Statement(_PLAIN[rows], values)


_NO_COLUMNS: Final = (NULL,) * len(COLUMNS)


def _leaf_columns(records: Bundle | None, owners: Bundle | None) -> Sequence[Any]:
    """Return the columns of the last row of a statement: its leaves, if there are any."""
    if records is None:
        return _NO_COLUMNS
    own = (NULL, NULL, NULL) if owners is None else (owners.size, owners.hashes, owners.names)
    known = (records.size, int(records.is_keyed), NULL)
    return NULL, NULL, records.hashes, records.names, *own, *known


_NO_KEYS: Final = tuple((NULL,) * (KEYS - given) for given in range(KEYS + 1))
_ENDS: Final = tuple((*missing, ADD) for missing in _NO_KEYS)
"""The last parameters of a record, by the number of its keys."""


def _row(
    kind: int,
    memory_id: str | float = NULL,
    memory: float = NULL,
    number: float = NULL,
    owner: str | float | None = NULL,
) -> Sequence[Any]:
    """Return the parameters of a row that is not a record."""
    columns = (NULL, memory_id, *_NO_COLUMNS[2:])
    return *columns, memory, number, owner, NULL, NULL, *_NO_KEYS[0], kind


_BEGIN_ROW: Final = _row(BEGIN)
_END_ROW: Final = _row(END)


def _more_keys(keys: Sequence[int]) -> Iterator[Any]:
    """Yield the parameters of rows with more keys of the record before."""
    for start in range(0, len(keys), KEYS):
        part = keys[start : start + KEYS]
        yield from (*_NO_COLUMNS, *(NULL,) * 5, *part, *_NO_KEYS[len(part)], MORE_KEYS)


def _detailed_parameters(
    records: Sequence[Fields],
    sealed: Iterator[SealedValues] | None,
    expected: ExpectedOwners,
    leaves: Bundle | None,
    *,
    is_indexed: bool,
) -> list[Any]:
    """Return the parameters of all rows, in the order of the view's columns."""
    given: dict[str, Owner] = {}
    values: list[Any] = [*_BEGIN_ROW] if is_indexed else []
    new, unseen = expected.new, expected.without or set()
    for record, stored in zip(records, expected.owners, strict=True):
        memory_id = record[MEMORY_ID]
        memory = memory_key(memory_id)
        number: float = NULL
        owner: str | float | None = NULL
        keys: tuple[int, ...] = ()
        if stored is not None:
            number = stored.number
            owner, keys = owner_entry(stored.owner)
            if memory_id in new:
                new.remove(memory_id)
                given[memory_id] = stored.owner
                values += _row(GIVE, memory_id, memory, number, owner)
        elif memory_id in unseen:
            unseen.remove(memory_id)
            values += _row(CHECK, memory_id, memory)
        texts = None
        if sealed is None:
            content = record[CAUSE]
            context, cause = json_text(record[CONTEXT]), json_text(content)
        else:
            texts = next(sealed)
            _, _, context, cause, content = texts
        if not is_indexed:
            keys = ()
        elif content is not None:
            keys += tuple(cause_keys(content))
        values += parameters(record, texts)
        values += (
            memory,
            number,
            owner,
            NULL if context is None else context,
            NULL if cause is None else cause,
        )
        values += keys[:KEYS]
        if len(keys) <= KEYS:
            values += _ENDS[len(keys)]
        else:
            values += (*_ENDS[KEYS], *_more_keys(keys[KEYS:]))
    owners = owner_bundle(given) if leaves is not None and given else None
    values += (*_leaf_columns(leaves, owners), *_END_ROW[len(COLUMNS) :])
    return values
