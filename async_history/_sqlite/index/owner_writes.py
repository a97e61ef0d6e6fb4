"""Statements of a trigger that write owners and details as records are added.

The inserted row, `new`, has a record's columns and more: `memory`, the memory's key; `number` and
`owner`, its owner's number and JSON; `context` and `cause`; and, if the record is indexed at once,
`key1` to `key3`, keys of its scopes and causes.

A statement checks its assumptions: RAISE rolls back all of it. A statement that inserts nothing
costs as much as one that does, so what only few records need is in separate rows.
"""

from typing import Final

from async_history._sqlite.index.erased import IS_ERASED
from async_history._sqlite.index.levels import LEVELS
from async_history._sqlite.index.owners import owner_number
from async_history._sqlite.index.validity import LOWEST_ROW

_HAS_ENTRY: Final = " OR ".join(
    f"EXISTS (SELECT 1 FROM main.{level} WHERE memory = new.memory)" for level in LEVELS
)
_IS_IN_TAIL: Final = """EXISTS (
    SELECT 1 FROM main.history AS tail WHERE tail.memory_id = new.memory_id
        AND tail.rowid > (SELECT indexed_through FROM main.async_history_state)
)"""


def _check(is_wrong: str) -> str:
    return f"""
    SELECT RAISE(ABORT, 'the memory was erased') WHERE {IS_ERASED};
    SELECT RAISE(ABORT, 'the owner of the memory is not the expected one') WHERE {is_wrong};"""


def _has_owner(*, through_tail: bool) -> str:
    number = owner_number("new.memory", "new.memory_id", through_tail=through_tail)
    return f"{number} IS NOT NULL"


_ADD_OWNER: Final = """
    INSERT INTO async_history_owners (number, memory_id, owner)
    VALUES (new.number, new.memory_id, new.owner);"""
CHECK_NO_OWNER: Final = _check(_has_owner(through_tail=False))
CHECK_NO_OWNER_LATER: Final = _check(_has_owner(through_tail=True))
"""The memory has no owner. The first of two variants is for a statement that found all rows and
owners indexed, and indexes its own; the rows and owners of the other are indexed later."""
GIVE_OWNER: Final = f"""{_check(_HAS_ENTRY)}{_ADD_OWNER}
    INSERT OR REPLACE INTO async_history_recent (memory, position)
    VALUES (new.memory, {LOWEST_ROW} - new.number);
"""
_IS_COVERED: Final = "new.number <= (SELECT owned_through FROM main.async_history_state)"
GIVE_OWNER_LATER: Final = f"""{
    _check(f"{_HAS_ENTRY} OR {_IS_IN_TAIL} OR {_has_owner(through_tail=True)} OR {_IS_COVERED}")
}{_ADD_OWNER}
"""
"""A memory without records gets an owner, in the same two variants. The number of a removed owner
may be given again. In the second variant it must be above all that are indexed, or the owner would
not be found."""


def _add_keys(position: str) -> str:
    return "".join(
        f"""
    INSERT OR REPLACE INTO async_history_recent (memory, position)
    SELECT new.{key}, {position} WHERE new.{key} IS NOT NULL;"""
        for key in ("key1", "key2", "key3")
    )


ADD_KEYS: Final = _add_keys("last_insert_rowid()")
"""Run after the record is inserted: adds its entries by `key1` to `key3`."""
ADD_MORE_KEYS: Final = _add_keys("(SELECT max(rowid) FROM main.history)")
"""Adds more entries for the record that was added before."""
ADD_DETAILS: Final = """
    INSERT OR REPLACE INTO async_history_details (id, owner, context, cause)
    SELECT new.id,
           CASE WHEN new.number IS NOT NULL THEN coalesce(
               (
                   SELECT number FROM main.async_history_owners AS owned
                   WHERE owned.number = new.number AND owned.memory_id = new.memory_id
                       AND owned.owner = new.owner
               ),
               RAISE(ABORT, 'the owner of the memory is not the expected one')
           ) END,
           new.context, new.cause
    WHERE new.number IS NOT NULL OR new.context IS NOT NULL OR new.cause IS NOT NULL;
"""
"""Run after the record is inserted: adds its details, and checks the memory's owner."""
