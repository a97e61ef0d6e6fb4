"""Statements of a trigger that write a record's owner and details as the record is added.

The row that is inserted has, besides a record's columns: `memory`, the memory's key; `owner`, its
owner as JSON, and `expects`, what is known of it; `context` and `cause`; and, if it is indexed at
once, the keys of its scopes and causes: `key1` to `key3`, and a JSON array of `more`.
"""

from typing import Final

from async_history._sqlite.index.levels import LEVELS
from async_history._sqlite.index.owners import HAS_OWNERS, owner_number
from async_history._sqlite.index.validity import LOWEST_ROW

EXPECTS_NONE: Final = 0
"""The memory has no owner."""
EXPECTS_GIVEN: Final = 1
"""The memory has this owner, or no record yet: then it gets it."""
EXPECTS_KNOWN: Final = 2
"""The memory has this owner: this transaction, or an earlier statement, has seen it."""

_HAS_ENTRY: Final = " OR ".join(
    f"EXISTS (SELECT 1 FROM main.{level} WHERE memory = new.memory)" for level in LEVELS
)
_IN_TAIL: Final = """EXISTS (
    SELECT 1 FROM main.history AS tail WHERE tail.memory_id = new.memory_id
        AND tail.rowid > (SELECT indexed_through FROM main.async_history_state)
)"""


def _add_owner(number: str, is_known: str) -> str:
    return f"""
    SELECT RAISE(ABORT, 'the memory has an owner')
    WHERE new.expects = {EXPECTS_NONE} AND {HAS_OWNERS} AND {number} IS NOT NULL;
    INSERT INTO async_history_owners (memory_id, owner)
    SELECT new.memory_id, new.owner
    WHERE new.expects = {EXPECTS_GIVEN} AND NOT ({is_known});
    """


def _add_details(number: str) -> str:
    return f"""
    INSERT OR REPLACE INTO async_history_details (id, owner, context, cause)
    SELECT new.id,
           CASE WHEN new.owner IS NOT NULL THEN coalesce(
               {number}, RAISE(ABORT, 'the memory has another owner, or none')
           ) END,
           new.context, new.cause
    WHERE new.owner IS NOT NULL OR new.context IS NOT NULL OR new.cause IS NOT NULL;
    """


def _number(condition: str = "true", *, through_tail: bool) -> str:
    return owner_number(
        "new.memory", "new.memory_id", through_tail=through_tail, condition=condition
    )


_IS_OWNER: Final = "owned.owner = new.owner"
_ANY: Final = _number(through_tail=True)
ADD_OWNER_LATER: Final = _add_owner(_ANY, f"{_HAS_ENTRY} OR {_IN_TAIL} OR {_ANY} IS NOT NULL")
ADD_DETAILS_LATER: Final = _add_details(_number(_IS_OWNER, through_tail=True))
"""For a record that is indexed later: run before and after it is inserted."""
ADD_OWNER: Final = f"""{_add_owner(_number(through_tail=False), _HAS_ENTRY)}
    INSERT OR REPLACE INTO async_history_recent (memory, position)
    SELECT new.memory, {LOWEST_ROW} - number FROM main.async_history_owners
    WHERE new.expects = {EXPECTS_GIVEN} AND memory_id = new.memory_id
        AND number = (SELECT max(number) FROM main.async_history_owners);
"""
_ADD_KEYS: Final = "".join(
    f"""
    INSERT OR REPLACE INTO async_history_recent (memory, position)
    SELECT new.{key}, last_insert_rowid() WHERE new.{key} IS NOT NULL;"""
    for key in ("key1", "key2", "key3")
)
ADD_DETAILS: Final = f"""{_ADD_KEYS}
    INSERT OR REPLACE INTO async_history_recent (memory, position)
    SELECT value, last_insert_rowid() FROM json_each(new.more) WHERE new.more IS NOT NULL;
    {_add_details(_number(_IS_OWNER, through_tail=False))}
"""
"""For a record that is indexed at once, by a statement that found all others indexed: run before it
is inserted, and after its own entry."""
