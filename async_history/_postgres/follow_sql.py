"""The SELECTs of a follower in PostgreSQL: what is new, where it ends, whether it is another past.

Each may be planned before the server knows anything of the table, or when that was small: a LIMIT
and an order leave the planner one index to take.
"""

from typing import Final

from async_history._postgres.rows import RECORD_COLUMNS

_NOW: Final = "pg_catalog.pg_current_snapshot()"
_OVER: Final = f"""(
    SELECT CASE WHEN {_NOW}::pg_catalog.text LIKE '%:'::pg_catalog.text
        THEN pg_catalog.pg_snapshot_xmin({_NOW}) ELSE pg_catalog.pg_snapshot_xmax({_NOW})
    END
)"""
"""SQL: of transactions below this, the snapshot knows whether they are over: `Snapshot.parse`'s
`xmax`. Nobody reads beyond."""
_STORE: Final = """(
    SELECT system_identifier::pg_catalog.text || '/'::pg_catalog.text
        || pg_catalog.to_regclass($1::pg_catalog.text)::pg_catalog.oid::pg_catalog.text
    FROM pg_catalog.pg_control_system()
)"""
"""SQL: which cluster's which table, as text."""
_ISSUED: Final = """(
    SELECT CASE
        WHEN pg_catalog.has_sequence_privilege(
            named::pg_catalog.regclass::pg_catalog.oid, 'SELECT, USAGE'
        )
        THEN pg_catalog.pg_sequence_last_value(named::pg_catalog.regclass)
    END
    FROM pg_catalog.pg_get_serial_sequence($1::pg_catalog.text, 'seq') AS named
)"""
"""SQL: the last `seq` given out, to whoever may know: to one of the two rights."""


def _after(number: str) -> str:
    """Return SQL for the ranges of numbers above this one whose transactions are over."""
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
    {_STORE}, {_NOW}::pg_catalog.text, {_newest(_ALL)}, {_ISSUED}, CASE
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
"""Whether there are `foreign` records is asked first: for their last `seq` the planner goes down
the index on `seq`, through the whole table where there are none."""
MARK: Final = f"""
SELECT pg_catalog.json_build_array({_STORE}, {_NOW}::pg_catalog.text, {_newest(_ALL)})
    ::pg_catalog.text
"""


def _head(more: str = "") -> str:
    """Return SQL for what must be known beside a page, in a row without `seq`, and UNION ALL.

    The statement has one snapshot. $1 is the table, $2 the place's newest transaction, $3 where its
    witness stands.
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
    )::pg_catalog.text, NULL, NULL, NULL, NULL, NULL, NULL, NULL::pg_catalog.bool, NULL, NULL,
    NULL::pg_catalog.timestamptz
UNION ALL
"""


_COUNT: Final = "(SELECT pg_catalog.count(*) FROM unseen)"
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
{_head(f", {_newest(_GIVEN)}, {_COUNT}")}
(
    SELECT seq, true, false, {RECORD_COLUMNS} FROM unseen
    WHERE seq > $5::pg_catalog.int8 AND {_COUNT} < $6::pg_catalog.int8
    ORDER BY seq
)
"""
"""All that the snapshot $4 does not see, without `foreign` ones; nothing of it where that is $6
rows. It looks at the new rows and no others. The LIMIT is a SELECT, so that the planner does not
know it: it then takes the index for the order, which can stop, and not a bitmap, which is made of
all."""
EXTENT: Final = f"""
SELECT {_NOW}::pg_catalog.text, pg_catalog.count(*), pg_catalog.min(seq), pg_catalog.max(seq),
    pg_catalog.max(xact::pg_catalog.text::pg_catalog.int8)
FROM (
    SELECT xact, seq FROM {{schema}}.history
    WHERE xact > $1::pg_catalog.text::pg_catalog.xid8
        AND xact < $2::pg_catalog.text::pg_catalog.xid8 AND seq > $3::pg_catalog.int8
    ORDER BY xact LIMIT (SELECT $4::pg_catalog.int8)
) AS looked_at
"""
"""Of the first $4 rows between two numbers: their lowest and highest `seq`, and the last number."""


def _same_window(wanted: str) -> str:
    return f"""{_head()}
(
    SELECT seq, is_wanted, number = $6::pg_catalog.int8, {RECORD_COLUMNS} FROM (
        SELECT *, pg_catalog.row_number() OVER (ORDER BY seq) AS number,
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
"""The next page between the snapshots $4 and $8, in the order of `seq`. After $6 rows it ends, with
the last of them, wanted or not."""
