"""The ledger's statements in PostgreSQL: see `LedgerStatements` for their parameters and results.

They run in transactions that turn off plans without an index, so that lists are joined row by row.
`scan` turns them on again: the index of memories would read each record's page by itself.
"""

from typing import Final

from async_history._core.ledger.statements import LedgerStatements
from async_history._core.records.owners import SCOPES
from async_history._core.records.records import COLUMNS
from async_history._postgres.encryption_sql import IS_ENCRYPTED

_LIST: Final = "pg_catalog.json_array_elements_text($1::pg_catalog.text::pg_catalog.json)"
"""The texts of a list."""
_PAIRS: Final = """(
    SELECT pg_catalog.json_array_element_text(pair, 0)::pg_catalog.int8 AS one,
           pg_catalog.json_array_element_text(pair, 1)::pg_catalog.int8 AS other
    FROM pg_catalog.json_array_elements($1::pg_catalog.text::pg_catalog.json) AS pair
)"""
"""The numbers of a list of pairs."""
_BUNDLE: Final = """
SELECT first, xact::pg_catalog.text::pg_catalog.int8, since::pg_catalog.text::pg_catalog.int8,
       kind, size, hashes, is_keyed, names
FROM {schema}.history_ledger"""
_COLUMNS: Final = ", ".join(
    f"history.{name}::pg_catalog.int4" if name == "is_deleted" else f"history.{name}"
    for name in COLUMNS
)
"""The columns as leaves commit to them."""
_LINES: Final = ", ".join(
    "history.is_deleted::pg_catalog.int4::pg_catalog.text"
    if name == "is_deleted"
    else f"pg_catalog.to_json(history.{name}::pg_catalog.text)::pg_catalog.text"
    for name in (*COLUMNS, "context", "cause")
)
"""The values as JSON. PostgreSQL escapes the same characters as a leaf's lines do, in the same way.
Leaves that do not match are compared again with lines that are made here. Columns that were altered
are texts again: a value of type json would be a line as it is."""
_SCOPES: Final = ", ".join(SCOPES)
_OF_RECORD: Final = ", ".join(f"history.{scope}" for scope in SCOPES)
_OF_MEMORY: Final = ", ".join(f"owned.{scope}" for scope in SCOPES)
_IS_OWNED: Final = " OR ".join(f"{{0}}.{scope} IS NOT NULL" for scope in SCOPES)
_NO_SALT: Final = f"pg_catalog.decode('{'00' * 16}'::pg_catalog.text, 'hex'::pg_catalog.text)"
"""Without a backslash, which `standard_conforming_strings = off` gives another meaning."""
_REMOVABLE: Final = "kind IN ('record', 'rest', 'owner')"
_HELD: Final = "pg_catalog.octet_length(hashes) / 48"
"""The number of a bundle's hashes: its size, which may be damaged."""


def _time(column: str) -> str:
    """Return SQL for a time as text, independent of the session's settings."""
    return f"""pg_catalog.to_char(
        pg_catalog.timezone('UTC'::pg_catalog.text, {column}), 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"'
    )"""


STATEMENTS: Final = LedgerStatements(
    has_key_tables=None,
    is_encrypted=IS_ENCRYPTED,
    lock=None,  # each store has its own: see `Attestation`
    size="""
    SELECT coalesce((
        SELECT first + size FROM {schema}.history_ledger
        WHERE first IS NOT NULL ORDER BY first DESC LIMIT 1
    ), 0::pg_catalog.int8)
    """,
    append="""
    INSERT INTO {schema}.history_ledger (kind, size, hashes, is_keyed, names)
    VALUES ($1, $2, $3, $4, $5)
    """,
    waiting="""
    SELECT number, kind, size, hashes, is_keyed, names FROM (
        SELECT *, pg_catalog.sum(size) OVER (ORDER BY number) - size::pg_catalog.numeric AS before
        FROM (
            SELECT * FROM {schema}.history_ledger WHERE first IS NULL
            ORDER BY number LIMIT $1::pg_catalog.int8
        ) AS waiting
    ) AS counted WHERE before < $2::pg_catalog.int8::pg_catalog.numeric ORDER BY number
    """,
    place=f"""
    UPDATE {{schema}}.history_ledger SET first = given.other
    FROM {_PAIRS} AS given WHERE number = given.one
    """,
    rewrite="""
    UPDATE {schema}.history_ledger SET hashes = $1, names = $2 WHERE first = $3::pg_catalog.int8
    """,
    leaf_count=f"""
    SELECT coalesce(pg_catalog.sum({_HELD}), 0::pg_catalog.int8) FROM {{schema}}.history_ledger
    WHERE first IS NOT NULL
    """,
    rewrite_all=f"""
    WITH named AS (
        DELETE FROM {{schema}}.history_ledger_names WHERE place NOT IN (
            SELECT first + at FROM {{schema}}.history_ledger
            CROSS JOIN pg_catalog.generate_series(0, {_HELD} - 1) AS at
            WHERE NOT ({_REMOVABLE}) AND first IS NOT NULL
        )
    )
    UPDATE {{schema}}.history_ledger SET
        hashes = coalesce((
            SELECT pg_catalog.string_agg(
                {_NO_SALT} || pg_catalog.substr(hashes, at * 48 + 17, 32), ''::pg_catalog.bytea
                ORDER BY at
            ) FROM pg_catalog.generate_series(0, {_HELD} - 1) AS at
        ), ''::pg_catalog.bytea),
        names = '[null' || pg_catalog.repeat(',null', {_HELD} - 1) || ']'
    WHERE {_REMOVABLE} AND first IS NOT NULL
    RETURNING first, {_HELD}
    """,
    bundles=f"""{_BUNDLE}
    WHERE first >= $1::pg_catalog.int8 AND first < $2::pg_catalog.int8 ORDER BY first
    """,
    # As a join, each bundle of the ledger would be compared with each place.
    bundles_at=f"""{_BUNDLE}
    WHERE first = ANY(ARRAY(
        SELECT (
            SELECT first FROM {{schema}}.history_ledger
            WHERE first <= given.place::pg_catalog.int8 ORDER BY first DESC LIMIT 1
        ) FROM {_LIST} AS given (place)
    )) ORDER BY first
    """,
    entries=f"{_BUNDLE} WHERE kind = 'entry' AND first IS NOT NULL ORDER BY first",
    tiles=f"""
    SELECT level, number, hashes FROM {_PAIRS} AS given
    JOIN {{schema}}.history_ledger_tiles ON level = given.one AND number = given.other
    """,
    write_tile="""
    INSERT INTO {schema}.history_ledger_tiles (level, number, hashes) VALUES ($1, $2, $3)
    ON CONFLICT (level, number) DO UPDATE SET hashes = excluded.hashes
    """,
    names=f"""
    SELECT key, place FROM {_LIST} AS given (name)
    JOIN {{schema}}.history_ledger_names ON key = given.name::pg_catalog.int8
    """,
    write_names=f"""
    INSERT INTO {{schema}}.history_ledger_names (key, place)
    SELECT given.one, given.other FROM {_PAIRS} AS given ORDER BY given.one
    ON CONFLICT (key, place) DO NOTHING
    """,
    remove_names=f"""
    DELETE FROM {{schema}}.history_ledger_names USING {_PAIRS} AS given
    WHERE key = given.one AND place = given.other
    """,
    records=f"""
    SELECT history.seq, owned.memory_id IS NULL
            OR ({_OF_RECORD}) IS NOT DISTINCT FROM ({_OF_MEMORY}),
        {_COLUMNS}, history.context, history.cause
    FROM {_LIST} AS given (id) JOIN {{schema}}.history ON history.id = given.id
    LEFT JOIN {{schema}}.owners AS owned ON owned.memory_id = history.memory_id
    """,
    # Without the table's primary key, several records can have an id.
    lines=f"""
    SELECT history.seq, history.id,
        pg_catalog.array_to_string(ARRAY[{_LINES}], pg_catalog.chr(10), 'null'::pg_catalog.text)
    FROM {{schema}}.history WHERE history.seq >= (
        SELECT pg_catalog.min(first.seq) FROM {{schema}}.history AS first
        WHERE first.id = $1::pg_catalog.text
    ) AND history.seq <= (
        SELECT pg_catalog.max(last.seq) FROM {{schema}}.history AS last
        WHERE last.id = $2::pg_catalog.text
    ) ORDER BY history.seq LIMIT $3::pg_catalog.int8
    """,
    owners=f"""
    SELECT owned.memory_id, pg_catalog.json_build_object(
        {", ".join(f"'{scope}', owned.{scope}" for scope in SCOPES)}
    )::pg_catalog.text
    FROM {_LIST} AS given (memory_id)
    JOIN {{schema}}.owners AS owned ON owned.memory_id = given.memory_id
    """,
    memories=f"""
    SELECT given.memory_id FROM {_LIST} AS given (memory_id) WHERE EXISTS (
        SELECT FROM {{schema}}.history WHERE history.memory_id = given.memory_id
    )
    """,
    scan=None,  # set where transactions have their settings: see `Attestation`
    record_count="SELECT pg_catalog.count(*) FROM {schema}.history",
    owner_counts=f"""
    SELECT (
        SELECT pg_catalog.count(*) FROM {{schema}}.owners AS owned
        WHERE {_IS_OWNED.format("owned")}
    ) + pg_catalog.count(DISTINCT history.memory_id) FILTER (WHERE owned.memory_id IS NULL),
        pg_catalog.count(owned.memory_id)
    FROM {{schema}}.history
    LEFT JOIN {{schema}}.owners AS owned ON owned.memory_id = history.memory_id
    WHERE ({_OF_RECORD}) IS DISTINCT FROM ({_OF_MEMORY})
    """,
    record_ids="""
    SELECT seq, id FROM {schema}.history WHERE seq >= $1::pg_catalog.int8
    ORDER BY seq LIMIT $2::pg_catalog.int8
    """,
    operations=f"""
    SELECT operations.id, kind, {_time("begun_at")}, actor_id, process_id, host, database_role,
        arguments::pg_catalog.text, {_time("ended_at")}, error, records, messages
    FROM {_LIST} AS given (id) JOIN {{schema}}.operations ON operations.id = given.id
    """,
    operations_of="SELECT id FROM {schema}.operations WHERE actor_id = $1::pg_catalog.text",
    operation_counts="""
    SELECT pg_catalog.count(*), pg_catalog.count(ended_at) FROM {schema}.operations
    """,
)
