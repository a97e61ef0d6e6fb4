"""Following a history in PostgreSQL. Knows no connection.

Transactions commit in another order than they take their numbers, so no number alone says what is
new. A server's snapshot does: it tells of every transaction whether it was over. A follower walks
from snapshot to snapshot: a window holds the records that the newer sees and the older does not,
in the order of `seq`. Every record is in one window, the first whose snapshot sees it, however
late it committed; and nobody waits for transactions that stay open.

Records keep the order of acks: who wrote after another's ack has a higher `seq`, and no snapshot
sees it without the other. (In the order of `xact` that fails: a transaction that had its number
before may write after.)

What a snapshot must not be trusted with:

- On a standby, `pg_current_snapshot` does not list what is running (seen on 16 and 18: xmin:xmax:
  and nothing). Where nothing is listed, only what is below xmin is over; on a primary that is all.
  And one standby may be behind another, where the window was seen: then its end is not yet there.
- A crash lets the server give out again numbers of transactions that left nothing on disk. So a
  place reaches no further than the number of the newest record: that one is on disk, and what was
  numbered before it is never given out again.
- A dump restored elsewhere keeps the numbers of the server it came from. Those at or above xmax
  tell themselves; a place that begins among them holds the `seq` of the last, `foreign`, and all up
  to it belong to its first window. A place of another cluster or table is gone.

Lives here: snapshots, places, the SELECTs. Not here: which connection runs them.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final

from async_history.backends._postgres_read import Fetch
from async_history.backends._postgres_rows import RECORD_COLUMNS, record_from_row
from async_history.errors import CursorGone
from async_history.following import FollowRead
from async_history.migrations.postgres import in_schema
from async_history.queries import cursor_parts, cursor_text, not_a_cursor

_KIND: Final = "postgresql"

_OVER: Final = """(
    SELECT CASE WHEN pg_catalog.pg_current_snapshot()::pg_catalog.text LIKE '%:'
        THEN pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())
        ELSE pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())
    END
)"""
"""SQL: of transactions below this, the snapshot knows whether they are over: `Snapshot.parse`'s
`xmax`. Nobody reads beyond."""
_STORE: Final = """(
    SELECT system_identifier::pg_catalog.text || '/'
        || pg_catalog.to_regclass($1)::pg_catalog.oid::pg_catalog.text
    FROM pg_catalog.pg_control_system()
)"""
"""SQL: which cluster's which table, as text."""
_NEWEST: Final = f"""(
    SELECT xact::pg_catalog.text FROM {{schema}}.history AS newest WHERE xact < {_OVER}
    ORDER BY newest.xact DESC LIMIT 1
)"""  # noqa: S608 - constants
_FOREIGN: Final = """(
    SELECT pg_catalog.max(seq) FROM {schema}.history
    WHERE xact >= pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())
)"""

_END: Final = (
    f"SELECT {_STORE}, pg_catalog.pg_current_snapshot()::pg_catalog.text, {_NEWEST}, {_FOREIGN}"
)
_MARK: Final = f"SELECT {_STORE}, pg_catalog.pg_current_snapshot()::pg_catalog.text, {_NEWEST}"
_HEAD: Final = f"""
SELECT NULL::bigint, {_STORE}, pg_catalog.pg_current_snapshot()::pg_catalog.text, {_NEWEST},
       NULL, NULL, NULL, NULL, NULL::boolean, NULL, NULL, NULL::pg_catalog.timestamptz
UNION ALL
"""
"""What must be known beside a page, in a row without `seq`: the statement has one snapshot."""
_OLDER: Final = "$2::pg_catalog.text::pg_catalog.pg_snapshot"
_NEWER: Final = "$5::pg_catalog.text::pg_catalog.pg_snapshot"


def _next_window(wanted: str) -> str:
    return f"""{_HEAD}
(
    SELECT seq, {RECORD_COLUMNS} FROM (
        SELECT * FROM {{schema}}.history
        WHERE xact >= pg_catalog.pg_snapshot_xmax({_OLDER}) AND xact < {_OVER}
            {wanted}
        UNION ALL
        SELECT * FROM {{schema}}.history
        WHERE xact = ANY(ARRAY(SELECT pg_catalog.pg_snapshot_xip({_OLDER})))
            AND xact < {_OVER} {wanted}
    ) AS fresh
    WHERE seq + 0 > $3 ORDER BY seq LIMIT $4
)
"""  # noqa: S608 - constants


def _same_window(wanted: str) -> str:
    return f"""{_HEAD}
(
    SELECT seq, {RECORD_COLUMNS} FROM {{schema}}.history
    WHERE seq > $3 AND NOT pg_catalog.pg_visible_in_snapshot(xact, {_OLDER})
        AND (seq <= $6 OR pg_catalog.pg_visible_in_snapshot(xact, {_NEWER}))
        {wanted}
    ORDER BY seq LIMIT $4
)
"""  # noqa: S608 - constants


NEXT_WINDOW: Final = _next_window("")
NEXT_WINDOW_OF_MEMORY: Final = _next_window("AND memory_id = $5")
"""The first page of what the snapshot $2 does not see, without `foreign` ones. It reads the new
rows and no others: the planner takes no index for the order of `seq` through a UNION, and none for
`seq + 0`. (For `seq` it did, in a table not analyzed yet: every row there was, at each read.)"""
SAME_WINDOW: Final = _same_window("")
SAME_WINDOW_OF_MEMORY: Final = _same_window("AND memory_id = $7")
"""The next page between the snapshots $2 and $5: a large window is read in the order of `seq`."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Which transactions are over: those below `xmax` but for the `running` ones."""

    xmax: int
    running: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Snapshot":
        """Read a pg_snapshot. One that lists nothing may hide what runs from xmin on."""
        xmin, xmax, running = text.split(":")
        if not running:
            return cls(int(xmin))
        return cls(int(xmax), tuple(map(int, running.split(","))))

    @classmethod
    def read_back(cls, text: str) -> "Snapshot":
        """Read a snapshot's own text, as cursors have it.

        Raises:
            ValueError: it is none; the server would refuse it.
        """
        snapshot = cls.parse(text)
        numbers = (*snapshot.running, snapshot.xmax)
        is_in_order = all(a < b for a, b in pairwise(numbers))
        if str(snapshot) != text or not is_in_order or not 0 < numbers[0] <= numbers[-1] < 1 << 63:
            raise ValueError(text)
        return snapshot

    def __str__(self) -> str:
        running = ",".join(map(str, self.running))
        return f"{self.running[0] if running else self.xmax}:{self.xmax}:{running}"

    def sees(self, xact: int) -> bool:
        """Return whether a transaction was over."""
        return xact < self.xmax and xact not in self.running

    def up_to(self, xact: int) -> "Snapshot":
        """Return what it says of transactions up to this one, and nothing of later ones."""
        xmax = min(self.xmax, xact + 1)
        return Snapshot(xmax, tuple(x for x in self.running if x < xmax))

    def joined(self, other: "Snapshot") -> "Snapshot":
        """Return the snapshot that sees what either sees."""
        candidates = sorted({*self.running, *other.running})
        return Snapshot(
            max(self.xmax, other.xmax),
            tuple(x for x in candidates if not self.sees(x) and not other.sees(x)),
        )


_NOTHING: Final = Snapshot(1)
"""Sees no transaction: the lowest number is 3."""


@dataclass(frozen=True, slots=True)
class Place:
    """Behind all that `done` sees and, of what `window` sees besides, all up to `seq`.

    `store` says of which cluster's which table, `foreign` up to which `seq` the records came from
    another cluster before this place began.
    """

    store: str
    foreign: int
    done: Snapshot
    window: Snapshot | None = None
    seq: int = 0

    def __str__(self) -> str:
        window = None if self.window is None else str(self.window)
        return cursor_text(_KIND, self.store, self.foreign, str(self.done), window, self.seq)


def place_from(cursor: str) -> Place:
    """Read a place back from its text.

    Raises:
        InvalidInput: it is none of this backend.
    """
    match cursor_parts(cursor):
        case [kind, str(store), int(foreign), str(done), str() | None as window, int(seq)] if (
            kind == _KIND
        ):
            with contextlib.suppress(ValueError):
                parsed = None if window is None else Snapshot.read_back(window)
                return Place(store, foreign, Snapshot.read_back(done), parsed, seq)
    raise not_a_cursor(cursor, "follow on a PostgreSQL history")


class FollowReader:
    """Tells what was committed behind a place, through a function that runs one SELECT.

    Args:
        schema: the quoted schema.
    """

    def __init__(self, fetch: Fetch, schema: str) -> None:
        self._fetch = fetch
        self._schema = schema

    async def end(self) -> Place | None:
        """Return the place behind all that is committed."""
        ((store, now, newest, foreign),) = await self._fetch(
            in_schema(_END, self._schema), f"{self._schema}.history"
        )
        if newest is None and foreign is None:
            return None
        done = _NOTHING if newest is None else Snapshot.parse(now).up_to(int(newest))
        return Place(store, foreign or 0, done)

    async def mark(self) -> object:
        """Return what differs once a record is committed: the table, and which records are seen."""
        ((store, now, newest),) = await self._fetch(
            in_schema(_MARK, self._schema), f"{self._schema}.history"
        )
        return store, Snapshot.parse(now).up_to(int(newest or 0))

    async def page(
        self, place: Place | None, memory_id: str | None, limit: int
    ) -> FollowRead[Place]:
        """Return up to `limit` records behind a place, of one memory or of all.

        Raises:
            CursorGone: the place is of another cluster or table.
        """
        if place is None:
            end = await self.end()
            if end is None:
                return FollowRead([], lambda _: None, None, is_last=True)
            place = Place(end.store, end.foreign, _NOTHING, end.done)
        if place.window is None:
            return await self._next_window(place, memory_id, limit)
        return await self._same_window(place, place.window, memory_id, limit)

    async def _next_window(
        self, place: Place, memory_id: str | None, limit: int
    ) -> FollowRead[Place]:
        sql = NEXT_WINDOW if memory_id is None else NEXT_WINDOW_OF_MEMORY
        now, newest, rows = await self._rows(
            sql, memory_id, place, [str(place.done), place.foreign, limit]
        )
        window = place.done.joined(now.up_to(newest))
        return _page(place, window, rows, limit, is_last=len(rows) < limit)

    async def _same_window(
        self, place: Place, window: Snapshot, memory_id: str | None, limit: int
    ) -> FollowRead[Place]:
        sql = SAME_WINDOW if memory_id is None else SAME_WINDOW_OF_MEMORY
        bounds = [str(place.done), place.seq, limit, str(window), place.foreign]
        now, _, rows = await self._rows(sql, memory_id, place, bounds)
        if now.xmax < window.xmax:
            # A replica that has not heard of all that the window sees, as another has.
            return FollowRead([], lambda _: place, place, is_last=True)
        return _page(place, window, rows, limit, is_last=False)

    async def _rows(
        self, sql: str, memory_id: str | None, place: Place, arguments: list[Any]
    ) -> tuple[Snapshot, int, list[Sequence[Any]]]:
        """Return what is over now, the newest record's transaction, and a page's rows."""
        arguments = [f"{self._schema}.history", *arguments]
        if memory_id is not None:
            arguments.append(memory_id)
        rows = list(await self._fetch(in_schema(sql, self._schema), *arguments))
        (head,) = (row for row in rows if row[0] is None)
        _, store, now, newest, *_ = head
        if store != place.store:
            raise CursorGone(
                "this follower stood in another database cluster or table (a dump was restored, "
                "or the schema made anew); follow again without the cursor, or from the end"
            )
        return Snapshot.parse(now), int(newest or 0), [row for row in rows if row[0] is not None]


def _page(
    place: Place, window: Snapshot, rows: Sequence[Sequence[Any]], limit: int, *, is_last: bool
) -> FollowRead[Place]:
    """Return a page's records; one that is not full ends the window."""
    is_whole = len(rows) < limit

    def behind(index: int) -> Place:
        if is_whole and index == len(rows) - 1:
            return Place(place.store, place.foreign, window)
        return replace(place, window=window, seq=rows[index][0])

    end = Place(place.store, place.foreign, window) if is_whole else behind(len(rows) - 1)
    return FollowRead([record_from_row(row[1:]) for row in rows], behind, end, is_last)
