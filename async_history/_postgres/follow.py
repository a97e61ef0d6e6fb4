"""Following a history in PostgreSQL. Knows no connection.

Transactions commit in another order than they take their numbers, so no number alone says what is
new. A server's snapshot does: it tells of every transaction whether it was over. A follower walks
from snapshot to snapshot: a window holds the records that the newer sees and the older does not,
in the order of `seq`. Every record is in one window, the first whose snapshot sees it, however
late it committed; and nobody waits for transactions that stay open.

Records keep the order of acks: who wrote after another's ack has a higher `seq`, and no snapshot
sees it without the other. (In the order of `xact` that fails: a transaction that had its number
before may write after.)

No statement looks at more than so many rows, however much was missed. Of a window with more, first
only the lowest `seq` is looked for, then it is read in the order of `seq` from there on. What is
still running is left out by its number: its rows would be looked at for nothing at each poll.

What a snapshot must not be trusted with:

- On a standby, `pg_current_snapshot` does not list what is running (seen on 16 and 18: xmin:xmax:
  and nothing). Where nothing is listed, only what is below xmin is over; on a primary that is all.
  And one standby may be behind another, where the window was seen: then its end is not yet there.
- A crash lets the server give out again numbers of transactions that left nothing on disk. So a
  place reaches no further than the number of the newest record: that one is on disk, and what was
  numbered before it is never given out again.
- It may be of another past: a backup was restored, or a standby promoted that had not heard of the
  last transactions. Then numbers up to the newest record's are given out again, unless that record
  is there. So a place knows that record.
- A dump restored elsewhere keeps the numbers of the server it came from. Those at or above xmax
  tell themselves; a place that begins among them holds the `seq` of the last, `foreign`, and all up
  to it belong to its first window. A place of another cluster or table is gone.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Self

from async_history._core.follow import FollowRead
from async_history._postgres.cursors import (
    NOTHING,
    FollowPosition,
    Snapshot,
    Witness,
    position_from_cursor,
)
from async_history._postgres.follow_sql import (
    END,
    EXTENT,
    MARK,
    NEXT_WINDOW,
    SAME_WINDOW,
    SAME_WINDOW_OF_MEMORY,
)
from async_history._postgres.rows import Fetch, record_from_row
from async_history._postgres.schema import in_schema
from async_history.errors import CursorGone, InvalidInput

ROWS_AT_ONCE: Final = 20_000
"""Most rows that one statement looks at: some 20 ms. Of a page, of 2,000, it is a few."""
_LEAST_SEARCHED: Final = 5
"""How many times as many are looked at for their `seq` alone."""
_MOST_SEQ: Final = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class _Head:
    """What a page's statement tells besides its records."""

    store: str
    now: Snapshot
    is_standby: bool
    issued: int | None
    stands: str | None
    """The id of the record where the witness stood."""
    below: int | None
    """Where a record stands of the newest transaction that is no newer than the place's newest."""

    @classmethod
    def parse(cls, store: str, now: str, *rest: Any) -> Self:
        return cls(store, Snapshot.parse(now), *rest)

    def is_behind(self, place: FollowPosition) -> bool:
        """Return whether this server is to hear yet of what the place has seen.

        Raises:
            CursorGone: it never will.
        """
        if self.store != place.store:
            raise CursorGone(
                "this follower stood in another database cluster or table (a dump was restored, "
                "or the schema made again); follow again without the cursor, or from the end"
            )
        is_behind = self.now.xmax <= place.newest
        if self._is_another_past(place, is_behind=is_behind):
            raise CursorGone(
                "this follower had seen records that this server never had (a backup was restored, "
                "or a replica took over that had not heard of them); follow again without the "
                "cursor, or from the end"
            )
        return is_behind

    def _is_another_past(self, place: FollowPosition, *, is_behind: bool) -> bool:
        if is_behind and not self.is_standby:
            return True
        witness = place.witness
        if witness is None:
            return False
        if self.stands is not None:
            return not witness.is_of(self.stands)
        if is_behind or not self.now.sees(place.newest):
            return False
        # Removed, unless its `seq` is to be given out yet, or later ones went with numbers that
        # were over: a server that goes on after a crash leaves some `seq` out.
        return (self.issued is not None and self.issued < witness.seq) or (
            self.below is not None and witness.issued is not None and self.below > witness.issued
        )


class FollowReader:
    """Tells what was committed after a place, through a function that runs one SELECT.

    Args:
        schema: the quoted schema.
        where: what messages call the server.
        is_distributed: the tables are spread over the nodes of a Citus cluster.
        rows_at_once: most rows that a statement looks at.
    """

    def __init__(
        self,
        fetch: Fetch,
        schema: str,
        *,
        where: str,
        is_distributed: bool,
        rows_at_once: int = ROWS_AT_ONCE,
    ) -> None:
        self._fetch = fetch
        self._schema = schema
        self._where = where
        self._is_distributed = is_distributed
        self._rows_at_once = rows_at_once

    def place(self, cursor: str | None) -> FollowPosition | None:
        """Return a place from its text, None for the beginning.

        Raises:
            InvalidInput: the text is not a place's, or the tables are distributed.
        """
        if self._is_distributed:
            raise InvalidInput(
                f"{self._where} spreads this history over the nodes of a Citus cluster, which have "
                "no order of commits in common: it can't be followed"
            )
        return None if cursor is None else position_from_cursor(cursor)

    async def end(self) -> FollowPosition | None:
        """Return the place after all that is committed."""
        store, now, newest, issued, foreign = await self._told(END)
        if newest is None and foreign is None:
            return None
        if newest is None:
            return FollowPosition(store, foreign, NOTHING)
        number, seq, record_id = newest
        done = Snapshot.parse(now).up_to(number)
        return FollowPosition(store, foreign or 0, done, witness=Witness.of(seq, record_id, issued))

    async def mark(self) -> object:
        """Return what differs once a record is committed: the table, and which records are seen."""
        store, now, newest = await self._told(MARK)
        return store, Snapshot.parse(now).up_to(newest[0] if newest else 0)

    async def page(
        self, place: FollowPosition | None, memory_id: str | None, limit: int
    ) -> FollowRead[FollowPosition]:
        """Return up to `limit` records after a place, of one memory or of all.

        Raises:
            CursorGone: the place is of another cluster or table, or of another past of it.
        """
        if place is None:
            end = await self.end()
            if end is None:
                return FollowRead([], lambda _: None, None, is_last=True)
            place = replace(end, done=NOTHING, window=end.done)
        if place.window is None:
            return await self._next_window(place, memory_id, limit)
        return await self._same_window(place, place.window, memory_id, limit)

    async def _next_window(
        self, place: FollowPosition, memory_id: str | None, limit: int
    ) -> FollowRead[FollowPosition]:
        head, (newest, count), rows = await self._rows(
            NEXT_WINDOW, place, [str(place.done), place.foreign, limit + 1]
        )
        if head.is_behind(place):
            return _nothing_yet(place)
        number, witness = place.newest, place.witness
        if newest is not None:
            number, seq, record_id = newest
            witness = Witness.of(seq, record_id, head.issued)
        window = place.done.joined(head.now.up_to(number))
        within = replace(place, window=window, witness=witness)
        if count <= limit:
            return _page(within, rows, limit + 1, is_last=True)
        if memory_id is None:
            extent = await self._extent(within)
            if extent is None:
                return _nothing_yet(place)
            lowest, upto = extent
            within = replace(within, seq=lowest - 1, upto=upto)
        # Of one memory all is looked through.
        return await self._same_window(within, window, memory_id, limit)

    async def _extent(self, place: FollowPosition) -> tuple[int, int] | None:
        """Return the lowest and highest `seq` in a place's window; None where it is not all here.

        Of a transaction with more rows than are looked at, all are: which of them has the lowest
        `seq` is not to be known otherwise.
        """
        lowest, highest = _MOST_SEQ, place.foreign
        for after, before in place.ranges():
            most, is_more = self._rows_at_once * _LEAST_SEARCHED, True
            while is_more:
                arguments = [str(after), str(before), place.foreign, most]
                sql = in_schema(EXTENT, self._schema)
                ((now, count, first, last, number),) = await self._fetch(sql, *arguments)
                if Snapshot.parse(now).xmax <= place.newest:
                    return None
                if first is not None:
                    lowest, highest = min(lowest, first), max(highest, last)
                is_more = count == most
                if is_more and number - 1 > after:
                    after = number - 1  # its other rows, maybe
                else:
                    most *= 8
        return min(lowest, highest + 1), highest

    async def _same_window(
        self, place: FollowPosition, window: Snapshot, memory_id: str | None, limit: int
    ) -> FollowRead[FollowPosition]:
        sql = SAME_WINDOW if memory_id is None else SAME_WINDOW_OF_MEMORY
        upto = _MOST_SEQ if place.upto is None else place.upto
        most = self._rows_at_once
        arguments = [str(place.done), place.foreign, most, limit, str(window), place.seq, upto]
        if memory_id is not None:
            arguments.append(memory_id)
        head, _, rows = await self._rows(sql, place, arguments)
        if head.is_behind(place):
            return _nothing_yet(place)
        return _page(place, rows, limit, is_last=False)

    async def _rows(
        self, sql: str, place: FollowPosition, arguments: list[Any]
    ) -> tuple[_Head, list[Any], list[Sequence[Any]]]:
        """Return what is to be known besides, and a page's rows."""
        seq = None if place.witness is None else place.witness.seq
        table = f"{self._schema}.history"
        sql = in_schema(sql, self._schema)
        rows = list(await self._fetch(sql, table, str(place.newest), seq, *arguments))
        (head,) = (row for row in rows if row[0] is None)
        told = json.loads(head[3])
        return _Head.parse(*told[:6]), told[6:], [row for row in rows if row[0] is not None]

    async def _told(self, sql: str) -> Any:
        ((told,),) = await self._fetch(in_schema(sql, self._schema), f"{self._schema}.history")
        return json.loads(told)


def _nothing_yet(place: FollowPosition) -> FollowRead[FollowPosition]:
    """Return the read of a replica that has not heard of all that the place has seen."""
    return FollowRead([], lambda _: place, place, is_last=True)


def _page(
    place: FollowPosition, rows: Sequence[Sequence[Any]], limit: int, *, is_last: bool
) -> FollowRead[FollowPosition]:
    """Return a page's records; one that was not cut short ends the window."""
    wanted = [row for row in rows if row[1]]
    is_whole = len(rows) < limit and not (rows and rows[-1][2])

    def behind(index: int) -> FollowPosition:
        if is_whole and index == len(wanted) - 1:
            return place.after_window
        return replace(place, seq=wanted[index][0])

    end = place.after_window if is_whole else replace(place, seq=rows[-1][0])
    return FollowRead([record_from_row(row[3:]) for row in wanted], behind, end, is_last)
