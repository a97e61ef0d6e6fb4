"""The memory index of a SQLite file: entries of (key, position) in three levels.

The key is that of a memory. If records have an owner or a cause, it may also be the key of a scope
or a cause; see `owners`. The column's name is `memory` for all of them.

An ordinary index on random memory ids dirties about one page per row once it is large: at 3 million
rows that costs two thirds of the write speed (benchmarks/growth.py measures it). So the entries are
in three levels: a small one that takes every insert, a middle one and a large one. Every `STEP`
rows, one slice of the key space moves down a level, so that a statement writes a few dense pages
instead of a thousand scattered ones. All of it is SQL inside the inserting statement.

`async_history_state` says up to which row the levels are complete. Readers scan the rows after it.
So they also find rows that other programs wrote (plain mem0, a shell), which `unindexed_tail`
indexes. Our single records also wait there, so that their commits write no page of the index; at
`TAIL_ROWS`, all are indexed. If the index is not valid for this table, it covers no rows.
"""

import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from hashlib import blake2s
from typing import Literal, NamedTuple

from async_history._core.records.json_object import JsonObject, is_readable
from async_history._core.records.owners import owner_from_text
from async_history._sqlite.index.validity import (
    HAS_ONLY_OUR_TRIGGERS,
    INDEXED_THROUGH,
    LOWEST_ROW,
    THROUGH_ROW,
    covers_all_but,
    stamped,
)
from async_history.errors import StorageCorrupt

STEP = 512
"""Rows between two moves: about one full batch, so that a batch moves one slice of each level."""
TAIL_ROWS = 64
"""The most rows that single records leave unindexed. Scanning them takes about 5 us on average; one
more page in a single record's commit takes 25."""
_RECENT_SLICES = 16
"""`recent` holds at most STEP * 16 = 8,192 entries: about 50 pages, rewritten by every batch."""
_MIDDLE_SLICES = 256
"""`middle` holds at most STEP * 256 = 131,072 entries: a slice of it has about as many as a
batch."""
_KEY_BYTES = 6
_KEYS = 1 << 8 * _KEY_BYTES
_KEYS_KEPT = 16_384
"""Memories whose keys are cached: 3 MB. Computing a key takes three times as long as a CRC; reading
a cached one takes a third."""

LEVELS = ("async_history_recent", "async_history_middle", "async_history_settled")

SEVERAL_KEYS = "memory IN (SELECT value FROM json_each(:memories))"
"""SQL condition: an entry is of one of the memories whose keys are given as JSON."""


@lru_cache(_KEYS_KEPT)
def memory_key(memory_id: str | None) -> int:
    """Return the index's key of a memory: an evenly distributed hash of 48 bits, the same on each
    machine.

    Two memories may share a key, so readers compare the id too. With a CRC, a user could construct
    many memories with the same key, and each look-up and pruning step would read them all.
    """
    return _key(memory_id.encode()) if memory_id else 0


def keys_by_memory(memory_ids: Iterable[str]) -> str:
    """Return the parameter `:memories` of `KEYS_BY_MEMORY`: a JSON object."""
    return json.dumps({memory_id: memory_key(memory_id) for memory_id in memory_ids})


KEYS_BY_MEMORY = "(SELECT key AS memory_id, value AS memory FROM json_each(:memories))"
"""SQL table of memories with their keys. From a JSON object SQLite reads both without a call of
`json_extract` for each."""


@lru_cache(_KEYS_KEPT)
def value_key(kind: str, value: str) -> int:
    """Return the index's key of the value of a scope or a cause, like `memory_key`."""
    return _key(f"{kind}\0{value}".encode())


def value_keys(kind: str) -> Callable[[str], int]:
    """Return `value_key` of a kind without a cache, for values that are not repeated."""
    begun = blake2s(f"{kind}\0".encode(), digest_size=_KEY_BYTES)

    def key(value: str) -> int:
        whole = begun.copy()
        whole.update(value.encode())
        return int.from_bytes(whole.digest(), "big")

    return key


def _key(stored: bytes) -> int:
    return int.from_bytes(blake2s(stored, digest_size=_KEY_BYTES).digest(), "big")


def _outdated() -> None:
    """Fail the statement: its connection must be reopened, which builds a new index."""
    raise sqlite3.OperationalError("the index belongs to another table")


def _stored_key(encoding: str, stored: bytes | None) -> int:
    """Return the `memory_key` of a stored id's bytes, which another program may have stored as a
    BLOB."""
    if not stored or encoding == "UTF-8":
        return _key(stored) if stored else 0
    return memory_key(stored.decode(encoding, "replace"))


def _stored_value_key(encoding: str, kind: str, stored: bytes) -> int:
    """Return the `value_key` of a stored value's bytes."""
    return value_key(kind, stored.decode(encoding, "replace"))


def _is_object(encoding: str, stored: bytes) -> bool:
    """Return whether a stored text's bytes are a JSON object."""
    try:
        return is_readable(JsonObject(stored.decode(encoding)))
    except UnicodeDecodeError:
        return False


def _is_owner(encoding: str, stored: bytes) -> bool:
    """Return whether a stored text's bytes are an owner."""
    try:
        owner_from_text(stored.decode(encoding))
    except (StorageCorrupt, UnicodeDecodeError):
        return False
    return True


def _slice(slices: int) -> tuple[str, str]:
    """Return SQL for the first and last key of the slice to move at `new.indexed_through`."""
    width = _KEYS // slices
    first = f"(abs(new.indexed_through) / {STEP} % {slices} * {width})"
    return first, f"{first} + {width - 1}"


def _move(upper: str, lower: str, slices: int) -> str:
    first, last = _slice(slices)
    return f"""
    INSERT OR IGNORE INTO {lower}
        SELECT memory, position FROM {upper} WHERE memory BETWEEN {first} AND {last};
    DELETE FROM {upper} WHERE memory BETWEEN {first} AND {last};"""


MOVE_SLICES = f"""
DROP TRIGGER IF EXISTS temp.async_history_move_slices;
CREATE TEMP TRIGGER async_history_move_slices
AFTER UPDATE OF indexed_through ON main.async_history_state
WHEN new.indexed_through / {STEP} > old.indexed_through / {STEP}
BEGIN{_move(LEVELS[0], LEVELS[1], _RECENT_SLICES)}{_move(LEVELS[1], LEVELS[2], _MIDDLE_SLICES)}
    UPDATE async_history_state SET {stamped("lower_stamp")};
END;
"""
"""Run once on a writing connection: creates a temporary trigger, which the file does not store."""

COMPLETE = covers_all_but(0)
NEARLY_COMPLETE = covers_all_but(TAIL_ROWS)
"""SQL conditions: every row is indexed; all but so few that records can be added."""
NEARLY_COMPLETE_ALONE = covers_all_but(TAIL_ROWS, HAS_ONLY_OUR_TRIGGERS)
"""SQL condition: as `NEARLY_COMPLETE`, and the owner has no triggers on `history`, which may skip,
change or add rows. It scans the schema once for both: a scan takes ten microseconds."""
HAS_ROOM_IN_TAIL = covers_all_but(TAIL_ROWS - 2, "true", THROUGH_ROW)
"""SQL condition: with one row more, the tail need not be indexed. It does not check the schema, and
is only valid for the one in which `INDEX_IS_OURS_ALONE` was true."""


def positions(is_key: str, is_memory: str) -> str:
    """Return an SQL subquery: the rows that may belong to the memories that two conditions select.

    `is_key` is a condition on `memory`, a key; `is_memory` one on `memory_id` in `history`.
    """
    return f"""
    SELECT position FROM main.async_history_settled WHERE {is_key}
    UNION ALL SELECT position FROM main.async_history_middle WHERE {is_key}
    UNION ALL SELECT position FROM main.async_history_recent WHERE {is_key}
    UNION ALL SELECT position FROM main.async_history_strays
    UNION ALL SELECT rowid FROM main.history WHERE {is_memory} AND rowid > {INDEXED_THROUGH}
"""


POSITIONS = positions("memory = :memory", "memory_id = :memory_id")
"""SQL subquery: the rows that may belong to `:memory_id`, whose key is `:memory`."""

Direction = Literal["ASC", "DESC"]


class Range(NamedTuple):
    """An open interval of positions, as SQL values; None: unlimited."""

    after: str | None = None
    before: str | None = None

    def beyond(self, position: str | None, direction: Direction) -> "Range":
        """Return the part after a position in a direction."""
        if position is None:
            return self
        after, before = self
        if direction == "ASC":
            return Range(position if after is None else f"max({after}, {position})", before)
        return Range(after, position if before is None else f"min({before}, {position})")

    def __str__(self) -> str:
        """Return the SQL condition on `position`."""
        ends = [f"position > {self.after}"] if self.after is not None else []
        ends += [f"position < {self.before}"] if self.before is not None else []
        return " AND ".join(ends) or "true"


EVERYWHERE: tuple[Range, ...] = (Range(),)


def ordered_positions(
    direction: Direction,
    beyond: str | None = None,
    *,
    key: str = ":memory",
    memory_id: str = ":memory_id",
    in_tail: str | None = None,
    ranges: Sequence[Range] = EVERYWHERE,
    through_strays: bool = True,
) -> str:
    """Return an SQL table: each `position` that may belong to one memory, in order.

    `beyond` is SQL for the position after which to start; `key` and `memory_id` are SQL for the
    memory. For the key of a scope or a cause, `in_tail` is the SQL condition that `tail`, a row
    that is not indexed, has it. Indexed positions outside `ranges` may be left out. Without
    `through_strays`, `NEARLY_COMPLETE` must be true in the transaction; a look-up then takes half
    of a microsecond less.

    SQLite merges the levels as it reads them, so the first rows cost the same in a long history.
    Use it as the outer table of a CROSS JOIN without another ORDER BY.
    """
    # The table has an alias because the memory may be that of another row in `history`.
    in_tail = in_tail or f"tail.memory_id = {memory_id}"
    tail = f"tail.rowid > {INDEXED_THROUGH}"
    if beyond is not None and direction == "ASC":
        tail = f"tail.rowid > max({beyond}, {INDEXED_THROUGH})"
    elif beyond is not None:
        tail = f"{tail} AND tail.rowid < {beyond}"
    levels = " UNION ".join(
        f"SELECT position FROM main.{level}"
        f" WHERE memory = {key} AND {part.beyond(beyond, direction)}"
        for level in LEVELS
        for part in ranges
    )
    # Without a limit SQLite may ignore the ORDER BY in a join.
    strays = f"""
    UNION SELECT position FROM main.async_history_strays
        WHERE {Range().beyond(beyond, direction)}"""
    return f"""(
    {levels}{strays if through_strays else ""}
    UNION SELECT tail.rowid FROM main.history AS tail WHERE {tail} AND {in_tail}
    ORDER BY position {direction} LIMIT -1
)"""


TAIL_IS_LONG = f"""(
    (SELECT max(rowid) FROM history) - (SELECT indexed_through FROM async_history_state)
    >= {TAIL_ROWS}
)"""
TAIL_IS_THERE = """(
    (SELECT max(rowid) FROM history) > (SELECT indexed_through FROM async_history_state)
)"""
"""SQL conditions of a trigger: enough rows wait to be indexed; any row waits."""


def add_functions(connection: sqlite3.Connection) -> None:
    """Add to a connection the SQL functions that the index statements call."""
    (encoding,) = connection.execute("PRAGMA encoding").fetchone()
    connection.create_function("async_history_key", 1, partial(_stored_key, encoding))
    connection.create_function("async_history_key", 2, partial(_stored_value_key, encoding))
    connection.create_function("async_history_is_object", 1, partial(_is_object, encoding))
    connection.create_function("async_history_is_owner", 1, partial(_is_owner, encoding))
    connection.create_function("async_history_outdated", 0, _outdated)


def nth_position(direction: Direction, offset: str, beyond: str = "true") -> str:
    """Return an SQL value: the position of `given`'s memory at an offset, in order of positions.

    `given` has a `memory`, which is the key, and a `memory_id`; `beyond` is a condition on the
    positions. SQLite merges the levels as it reads them, so it costs no more in a long history.
    Every row must be indexed.
    """
    levels = " UNION ".join(
        f"SELECT position FROM main.{level} WHERE memory = given.memory AND {beyond}"
        for level in LEVELS
    )
    return f"""(
    SELECT position FROM ({levels} ORDER BY position {direction})
    WHERE EXISTS (
        SELECT 1 FROM main.history WHERE rowid = position AND memory_id = given.memory_id
    )
    LIMIT 1 OFFSET {offset}
)"""


ADD_ENTRY = """
    -- A rowid that SQLite reuses may still have an entry.
    INSERT OR REPLACE INTO async_history_recent (memory, position)
    VALUES (new.memory, last_insert_rowid());
"""
"""Statement of a trigger that indexes the row just inserted, whose key is `new.memory`."""

_KEYS_OF_SEVERAL = " UNION ALL ".join(
    f"SELECT memory FROM main.{level} WHERE {SEVERAL_KEYS} AND position > {LOWEST_ROW}"
    for level in LEVELS
)
COUNT_ENTRIES = f"SELECT memory, count(*) FROM ({_KEYS_OF_SEVERAL}) GROUP BY memory"
"""Statement that counts the entries of each key in `:memories`, a JSON array."""

_REMOVE_ENTRIES = tuple(
    f"""
    DELETE FROM {level} WHERE (memory, position) IN (
        SELECT value, CAST(key AS INTEGER) FROM json_each(?)
    )
    """
    for level in LEVELS
)


def remove_entries(connection: sqlite3.Connection, entries: Iterable[tuple[int, int]]) -> None:
    """Remove the entries of removed rows, each given as a key and a position.

    All levels are searched: a row that another program changed may have an entry in two of them.
    """
    # From an object SQLite reads both numbers without a call of `json_extract` for each. A row has
    # several entries, so a name may come more than once.
    given = "{" + ",".join(f'"{position}":{key}' for key, position in set(entries)) + "}"
    for statement in _REMOVE_ENTRIES:
        connection.execute(statement, (given,))
