"""How much MariaDB reads for a query: the rows and index entries that its handlers return.

No time is measured. The server itself fills the tables, with times in order.
"""

from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

from async_history._core.reading.cursors import Cursor
from async_history._sql.marks import mark_of
from async_history.sql import SqlHistoryManager
from tests.support.questions import PAGE, START, Question

_FILL: Final = """
INSERT INTO async_history_records
    (seq, id, memory_id, new_memory, event, is_deleted, occurred_at, actor_id, role,
        user_id, agent_id, run_id, app_id, cause)
SELECT seq, CONCAT('id-', seq),
    IF(seq % 5 = 0, 'large', CONCAT('m', seq * 7919 % ({rows} DIV 20))),
    REPEAT('likes tea ', 6), ELT(seq % 4 + 1, 'ADD', 'UPDATE', 'UPDATE', 'DELETE'), seq % 4 = 3,
    IF(seq % 500 <> 0, {start} + (seq + seq % 3) * 1000000, NULL),
    IF(seq BETWEEN {rows} DIV 2 AND {rows} DIV 2 + 4, 'rare', CONCAT('a', seq % 20)),
    IF(seq % 1000 = 7, NULL, IF(seq % 2 = 0, 'assistant', 'user')),
    CONCAT('u', seq % ({rows} DIV 100)), IF(seq % 3 = 0, CONCAT('a', seq % 4), NULL),
    CONCAT('r', seq DIV 10), 'app', CONCAT('{{"request_id":"', seq DIV 20, '"}}')
FROM seq_1_to_{rows}
"""
"""The rows of `postgres_plans.fill`."""
_NO_INDEXES: Final = """
ALTER TABLE async_history_records
    DROP INDEX async_history_records_id, DROP INDEX async_history_records_memory
"""
_INDEXES: Final = """
ALTER TABLE async_history_records
    ADD UNIQUE INDEX async_history_records_id (id),
    ADD INDEX async_history_records_memory (memory_id, seq)
"""
_NAMES: Final = """
CREATE TEMPORARY TABLE names (
    kind VARCHAR(20), name VARBINARY(255), mark BIGINT, PRIMARY KEY (kind, name)
)
"""
_MARKS: Final = """
INSERT INTO async_history_marks
SELECT mark, seq FROM async_history_records JOIN names ON kind = '{kind}' AND name = {named}
ORDER BY mark, seq
"""
_REST: Final = (
    """
    INSERT INTO async_history_spans
    SELECT seq >> 12, MIN(occurred_at), MAX(occurred_at),
        BIT_OR(ELT(seq % 4 + 1, 1, 2, 2, 4)), MAX(occurred_at IS NULL)
    FROM async_history_records GROUP BY 1
    """,
    "UPDATE async_history_state SET last = {rows}",
)
_REQUEST: Final = "cause request_id"
_AT_ONCE: Final = 20_000
_HANDLED: Final = (
    "SELECT SUM(variable_value) FROM information_schema.global_status"
    " WHERE variable_name LIKE 'Handler_read%'"
)


def _names(rows: int) -> Iterator[tuple[str, str]]:
    """Yield the kinds of names that have marks, and the names."""
    for kind, prefix, count in (
        ("actor_id", "a", 20),
        ("user_id", "u", rows // 100),
        ("agent_id", "a", 4),
        ("run_id", "r", rows // 10 + 1),
        (_REQUEST, "", rows // 20 + 1),
    ):
        for number in range(count):
            yield kind, f"{prefix}{number}"
    yield from (("actor_id", "rare"), ("role", "user"), ("role", "assistant"), ("app_id", "app"))


async def fill(cursor: Any, rows: int) -> None:
    """Write so many records into the empty tables of the cursor's database.

    Each index is filled in its order, since otherwise millions of rows take an hour.
    """
    await cursor.execute(_NO_INDEXES)
    start = int(START.timestamp()) * 1_000_000
    await cursor.execute(_FILL.format(rows=rows, start=start))
    await cursor.execute(_INDEXES)
    await cursor.execute(_NAMES)
    names = [(kind, name, mark_of(kind, name)) for kind, name in _names(rows)]
    for at in range(0, len(names), _AT_ONCE):
        await cursor.executemany("INSERT INTO names VALUES (%s, %s, %s)", names[at : at + _AT_ONCE])
    for kind in dict.fromkeys(kind for kind, *_ in names):
        named = "CAST(seq DIV 20 AS BINARY)" if kind == _REQUEST else kind
        await cursor.execute(_MARKS.format(kind=kind, named=named))
    for statement in _REST:
        await cursor.execute(statement.format(rows=rows))
    await cursor.execute("DROP TEMPORARY TABLE names")
    await cursor.execute("COMMIT")


async def reads(cursor: Any, call: Callable[[], Awaitable[object]]) -> int:
    """Return how many rows and entries a call reads. Nothing else may use the server meanwhile."""

    async def handled() -> int:
        await cursor.execute(_HANDLED)
        ((count,),) = await cursor.fetchall()
        return int(count)

    first, before = await handled(), await handled()
    await call()
    return await handled() - before - (before - first)


async def read_page(history: SqlHistoryManager, question: Question) -> None:
    """Read a page as a manager does."""
    after = None
    if question.after is not None:
        after = Cursor(question.after, f"id-{question.after}")
    await history.store.reader.page(question.wanted, after, PAGE, PAGE)
