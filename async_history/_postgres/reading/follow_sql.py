"""The SELECTs of a follower in PostgreSQL: new records, the end, and the server's state.

Each may be planned before the table has statistics, or while it is small: its LIMIT and ORDER BY
leave the planner only one index to use.
"""

from typing import Final

from async_history._postgres.rows import RECORD_COLUMNS, RECORD_NULLS, ROW_COLUMNS

_NOW: Final = "pg_catalog.pg_current_snapshot()"
_OVER: Final = f"""(
    SELECT CASE WHEN {_NOW}::pg_catalog.text LIKE '%:'::pg_catalog.text
        THEN pg_catalog.pg_snapshot_xmin({_NOW}) ELSE pg_catalog.pg_snapshot_xmax({_NOW})
    END
)"""
"""SQL value: the `xmax` of `Snapshot.parse`. For each transaction below it, the snapshot says
whether it has ended. Followers read no transaction at or above it."""
_STORE: Final = """(
    SELECT system_identifier::pg_catalog.text || '/'::pg_catalog.text
        || pg_catalog.to_regclass($1::pg_catalog.text)::pg_catalog.oid::pg_catalog.text
    FROM pg_catalog.pg_control_system()
)"""
"""SQL value: the identity of the cluster and the table, as text."""
_ISSUED: Final = """(
    SELECT CASE
        WHEN pg_catalog.has_sequence_privilege(
            named::pg_catalog.regclass::pg_catalog.oid, 'SELECT, USAGE'
        )
        THEN pg_catalog.pg_sequence_last_value(named::pg_catalog.regclass)
    END
    FROM pg_catalog.pg_get_serial_sequence($1::pg_catalog.text, 'seq') AS named
)"""
"""SQL value: the last `seq` that was issued; NULL if the role lacks both privileges."""
_AGE: Final = """(
    SELECT CASE
        WHEN NOT pg_catalog.pg_is_in_recovery() AND EXISTS (
            SELECT FROM pg_catalog.pg_trigger
            WHERE tgrelid = pg_catalog.to_regclass($1::pg_catalog.text)::pg_catalog.oid
                AND tgname = 'history_xact_before_seq'::pg_catalog.name
                AND tgenabled = 'A'::pg_catalog."char"
        ) AND EXISTS (
            SELECT FROM pg_catalog.pg_sequence
            WHERE seqrelid = pg_catalog.pg_get_serial_sequence($1::pg_catalog.text, 'seq')
                    ::pg_catalog.regclass::pg_catalog.oid
                AND seqcache = 1::pg_catalog.int8 AND seqincrement > 0::pg_catalog.int8
                AND NOT seqcycle
        )
        THEN pg_catalog.age('3'::pg_catalog.xid)
    END
)"""
"""SQL value: 32 bits of how many transaction numbers the server has issued since 3, the first. It
is read after the statement's snapshot was taken. (The snapshot's own xmax is only one above the
last ended transaction; higher ones may be running.) `age` is constant within a transaction, so the
statement must be the only one of its transaction.

NULL if a row may get its `seq` before its transaction gets its number, or out of order. This is so
without the trigger of version 11, and with a sequence of which sessions cache several values. Also
NULL on a standby, which does not know all issued numbers."""


def _after(number: str) -> str:
    """Return SQL for the ranges of ended transactions' numbers above this one."""
    return f"""
    SELECT pg_catalog.lag(edge) OVER (ORDER BY edge) AS after, edge AS before FROM (
        SELECT {number} AS edge
        UNION ALL SELECT running FROM pg_catalog.pg_snapshot_xip({_NOW}) AS running
            WHERE running > {number}
        UNION ALL SELECT number FROM {_OVER} AS over (number) WHERE number > {number}
    ) AS edges"""


def _newest(number: str) -> str:
    """Return SQL for the number, `seq` and id of the newest record above this number."""
    return f"""(
    SELECT pg_catalog.json_build_array(
        newest.xact::pg_catalog.text::pg_catalog.int8, newest.seq, newest.id
    )
    FROM ({_after(number)}) AS between CROSS JOIN LATERAL (
        SELECT xact, seq, id FROM {{schema}}.history
        WHERE xact > between.after AND xact < between.before ORDER BY xact DESC LIMIT 1
    ) AS newest
    ORDER BY between.before DESC LIMIT 1
)"""


_ALL: Final = "'0'::pg_catalog.xid8"
_GIVEN: Final = "$2::pg_catalog.text::pg_catalog.xid8"

END: Final = f"""
SELECT pg_catalog.json_build_array(
    {_STORE}, {_NOW}::pg_catalog.text, {_newest(_ALL)}, {_ISSUED}, {_AGE}, CASE
        WHEN (
            SELECT xact FROM {{schema}}.history
            WHERE xact >= pg_catalog.pg_snapshot_xmax({_NOW}) ORDER BY xact LIMIT 1
        ) IS NOT NULL
        THEN (
            SELECT pg_catalog.max(seq) FROM {{schema}}.history
            WHERE xact >= pg_catalog.pg_snapshot_xmax({_NOW})
        )
    END
)::pg_catalog.text
"""
"""It first checks whether there are `foreign` records: to find their last `seq` the planner reads
the index on `seq` backwards, through the whole table if there are none."""
MARK: Final = f"""
SELECT pg_catalog.json_build_array({_STORE}, {_NOW}::pg_catalog.text, {_newest(_ALL)})
    ::pg_catalog.text
"""


def _head(more: str = "") -> str:
    """Return SQL for the server's state, as a row without `seq`, followed by UNION ALL.

    The whole statement has one snapshot. $1 is the table, $2 the position's newest transaction, $3
    its witness's `seq`.
    """
    return f"""
SELECT NULL::pg_catalog.int8, false, false, pg_catalog.json_build_array(
        {_STORE}, {_NOW}::pg_catalog.text, pg_catalog.pg_is_in_recovery(), {_ISSUED}, (
            SELECT id FROM {{schema}}.history WHERE seq >= $3::pg_catalog.int8
                AND seq <= $3::pg_catalog.int8
            ORDER BY seq LIMIT 1
        ), (
            SELECT seq FROM {{schema}}.history WHERE xact <= {_GIVEN} ORDER BY xact DESC LIMIT 1
        ){more}
    )::pg_catalog.text, {", ".join(RECORD_NULLS[1:])}
UNION ALL
"""


_COUNT: Final = "(SELECT pg_catalog.count(*) FROM unseen)"
_HIGHEST_OF_MANY: Final = f"""CASE
    WHEN {_COUNT} >= $6::pg_catalog.int8
    THEN (SELECT seq FROM {{schema}}.history ORDER BY seq DESC LIMIT 1)
END"""
NEXT_WINDOW: Final = f"""
WITH unseen AS MATERIALIZED (
    SELECT found.* FROM (
        {_after(_GIVEN)}
        UNION ALL
        SELECT (late::pg_catalog.text::pg_catalog.int8 - 1)::pg_catalog.text::pg_catalog.xid8,
            (late::pg_catalog.text::pg_catalog.int8 + 1)::pg_catalog.text::pg_catalog.xid8
        FROM pg_catalog.pg_snapshot_xip($4::pg_catalog.text::pg_catalog.pg_snapshot) AS late
        WHERE late < {_OVER} AND pg_catalog.pg_visible_in_snapshot(late, {_NOW})
    ) AS between CROSS JOIN LATERAL (
        SELECT * FROM {{schema}}.history
        WHERE xact > between.after AND xact < between.before
        ORDER BY xact LIMIT (SELECT $6::pg_catalog.int8)
    ) AS found
    LIMIT $6::pg_catalog.int8
)
{_head(f", {_newest(_GIVEN)}, {_COUNT}, {_AGE}, {_HIGHEST_OF_MANY}")}
(
    SELECT seq, true, false, {RECORD_COLUMNS} FROM unseen
    WHERE seq > $5::pg_catalog.int8 AND {_COUNT} < $6::pg_catalog.int8
    ORDER BY seq
)
"""
"""All records that the snapshot $4 does not see, without `foreign` ones. If there are $6 or more,
it returns none, and the highest `seq` of all records. It reads only new rows. The LIMIT is a
SELECT, so that the planner does not know it. Then it reads the index in order and can stop, instead
of building a bitmap of all rows."""
LOWEST: Final = f"""
SELECT pg_catalog.json_build_array(
    {_NOW}::pg_catalog.text, pg_catalog.count(*), pg_catalog.min(seq),
    pg_catalog.max(xact::pg_catalog.text::pg_catalog.int8)
)::pg_catalog.text
FROM (
    SELECT xact, seq FROM {{schema}}.history
    WHERE xact > $1::pg_catalog.text::pg_catalog.xid8
        AND xact < $2::pg_catalog.text::pg_catalog.xid8 AND seq > $3::pg_catalog.int8
    ORDER BY xact LIMIT (SELECT $4::pg_catalog.int8)
) AS looked_at
"""
"""The lowest `seq` and the last number of the first $4 rows between two numbers."""


def _same_window(wanted: str) -> str:
    return f"""{_head()}
(
    SELECT seq, is_wanted, number = $6::pg_catalog.int8, {RECORD_COLUMNS} FROM (
        SELECT seq, occurred_at, {ROW_COLUMNS},
            pg_catalog.row_number() OVER (ORDER BY seq) AS number,
            NOT pg_catalog.pg_visible_in_snapshot(
                xact, (SELECT $4::pg_catalog.text::pg_catalog.pg_snapshot)
            ) AND (
                seq <= $5::pg_catalog.int8 OR pg_catalog.pg_visible_in_snapshot(
                    xact, (SELECT $8::pg_catalog.text::pg_catalog.pg_snapshot)
                )
            ) AS is_wanted
        FROM (
            SELECT * FROM {{schema}}.history
            WHERE seq > $9::pg_catalog.int8 AND seq <= $10::pg_catalog.int8 {wanted}
            ORDER BY seq LIMIT (SELECT $6::pg_catalog.int8)
        ) AS looked_at
    ) AS numbered
    WHERE is_wanted OR number = $6::pg_catalog.int8
    ORDER BY seq LIMIT $7::pg_catalog.int8
)
"""


SAME_WINDOW: Final = _same_window("")
SAME_WINDOW_OF_MEMORY: Final = _same_window("AND memory_id = $11::pg_catalog.text")
"""The next page between the snapshots $4 and $8, in the order of `seq`. It reads $6 rows at most;
the last of them is returned even if it is not wanted."""
