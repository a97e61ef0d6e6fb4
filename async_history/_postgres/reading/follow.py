"""Following a PostgreSQL history: pages of records in the order of acknowledgements.

Transactions commit in another order than they get their numbers, so a number alone does not say
what is new. A server's snapshot does: it says of each transaction whether it has ended. A follower
goes from snapshot to snapshot. A window is the set of records that the newer snapshot sees and the
older does not; it is read in the order of `seq`. Each record is in exactly one window, the first
whose snapshot sees it, however late it was committed. No follower waits for open transactions.

The order of acks is kept: a record written after another's ack has a higher `seq`, and no snapshot
sees it without the other. (The order of `xact` would not do: a transaction may get its number first
and write later.)

Each statement reads at most `rows_at_once` rows, however many are new. A larger window is read in
the order of `seq` from its lowest. Running transactions are excluded by their numbers; otherwise
each poll would read their rows for nothing.

The lowest `seq` is found without reading all new rows. Since version 11 of the tables, a trigger
gives a transaction its number before its first `seq`. So if a transaction got its number after a
record was committed, all its `seq` are higher than that record's. A position stores such a record,
its witness, and the server's next transaction number at that time (`next_xact`). Only rows of
transactions below that number, which were running then, are searched. The witness must still
exist: that proves that the server's timeline is the position's. Otherwise, and in histories without
that trigger, all new rows are searched through the index on `xact`.

Where a snapshot alone is not enough:

- On a standby, `pg_current_snapshot` does not list running transactions (seen on 16 and 18:
  xmin:xmax: and an empty list). If the list is empty, only transactions below xmin count as ended;
  on a primary these are all. A standby may also lag behind the server where the window was taken.
  Then it does not have the end of the window yet.
- After a crash the server reuses numbers of transactions that left nothing on disk. So a position
  covers numbers only up to the newest record's: that record is on disk, and numbers up to it are
  never reused.
- The server's timeline may differ: a backup was restored, or a standby was promoted that lacked the
  last transactions. Then numbers up to the newest record's are reused, unless that record exists.
  So a position stores that record as its witness.
- A dump restored on another server keeps the numbers of the old one. Those at or above xmax are
  recognizable. A position that begins while there are such records holds the `seq` of the last one,
  `foreign`, and all records up to it are in its first window. A position of another cluster or
  table is not valid.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Self

from async_history._core.reading.follow_reads import FollowRead
from async_history._postgres.reading.cursors import (
    NOTHING,
    FollowPosition,
    Snapshot,
    Witness,
    position_from_cursor,
)
from async_history._postgres.reading.follow_sql import (
    END,
    LOWEST,
    MARK,
    NEXT_WINDOW,
    SAME_WINDOW,
    SAME_WINDOW_OF_MEMORY,
)
from async_history._postgres.rows import Fetch, record_from_row
from async_history._postgres.schema import in_schema
from async_history.errors import CursorGone, InvalidInput

ROWS_AT_ONCE: Final = 20_000
"""The most rows that one statement reads, in about 20 ms. A page of 2,000 takes a few ms."""
_MOST_SEQ: Final = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class _Head:
    """The server's state, which each page's statement returns besides the records."""

    store: str
    now: Snapshot
    is_standby: bool
    issued: int | None
    stands: str | None
    """The id of the record that now has the witness's `seq`."""
    below: int | None
    """The `seq` of a record of the newest transaction up to the position's newest."""

    @classmethod
    def parse(cls, store: str, now: str, *rest: Any) -> Self:
        return cls(store, Snapshot.parse(now), *rest)

    def is_behind(self, position: FollowPosition) -> bool:
        """Return whether this server is a standby that has not yet replayed up to the position.

        Raises:
            CursorGone: it never will, because it has another table or timeline.
        """
        if self.store != position.store:
            raise CursorGone(
                "the cursor is from another database cluster or table (a dump was restored, or the "
                "schema was created again); follow again without the cursor, or from the end"
            )
        is_behind = self.now.xmax <= position.newest
        if self._is_another_past(position, is_behind=is_behind):
            raise CursorGone(
                "the cursor is after records that this server never had (a backup was restored, or "
                "a replica that lacked them was promoted); follow again without the cursor, or "
                "from the end"
            )
        return is_behind

    def _is_another_past(self, position: FollowPosition, *, is_behind: bool) -> bool:
        if is_behind and not self.is_standby:
            return True
        witness = position.witness
        if witness is None:
            return False
        if self.stands is not None:
            return not witness.is_of(self.stands)
        if is_behind or not self.now.sees(position.newest):
            return False
        # A removed record is allowed. It is another past if its `seq` was not issued here yet, or
        # if newer ones belong to older transactions. (After a crash a server skips some `seq`.)
        return (self.issued is not None and self.issued < witness.seq) or (
            self.below is not None and witness.issued is not None and self.below > witness.issued
        )


class FollowReader:
    """A reader of the records committed after a position, through a function that runs one SELECT.

    Args:
        schema: the quoted schema.
        where: the server, for messages.
        is_distributed: whether the tables are distributed over the nodes of a Citus cluster.
        rows_at_once: the most rows that a statement reads.
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

    def position(self, cursor: str | None) -> FollowPosition | None:
        """Return the position of a cursor; None for the beginning.

        Raises:
            InvalidInput: it is not a cursor of this backend, or the tables are distributed.
        """
        if self._is_distributed:
            raise InvalidInput(
                f"{self._where} distributes this history over the nodes of a Citus cluster, which "
                "have no common order of commits: it can't be followed"
            )
        return None if cursor is None else position_from_cursor(cursor)

    async def end(self) -> FollowPosition | None:
        """Return the position after all committed records; None if there are none."""
        store, text, newest, issued, age, foreign = await self._answer(END)
        if newest is None and foreign is None:
            return None
        if newest is None:
            return FollowPosition(store, foreign, NOTHING)
        now = Snapshot.parse(text)
        number, seq, record_id = newest
        next_xact = None if age is None else now.next_xact(age)
        witness = Witness.of(seq, record_id, issued, next_xact)
        return FollowPosition(store, foreign or 0, now.up_to(number), witness=witness)

    async def mark(self) -> object:
        """Return a value that changes with each commit: the table, and a snapshot of the
        records."""
        store, now, newest = await self._answer(MARK)
        return store, Snapshot.parse(now).up_to(newest[0] if newest else 0)

    async def page(
        self, after: FollowPosition | None, memory_id: str | None, limit: int
    ) -> FollowRead[FollowPosition]:
        """Return up to `limit` records after a position, of one memory or of all.

        Raises:
            CursorGone: the position is of another cluster, table or timeline.
        """
        if after is None:
            end = await self.end()
            if end is None:
                return FollowRead([], lambda _: None, None, is_last=True)
            after = replace(end, done=NOTHING, window=end.done)
        if after.window is None:
            return await self._next_window(after, memory_id, limit)
        return await self._same_window(after, after.window, memory_id, limit)

    async def _next_window(
        self, position: FollowPosition, memory_id: str | None, limit: int
    ) -> FollowRead[FollowPosition]:
        head, (newest, count, age, highest), rows = await self._rows(
            NEXT_WINDOW, position, [str(position.done), position.foreign, limit + 1]
        )
        if head.is_behind(position):
            return _nothing_yet(position)
        next_xact = None if age is None else head.now.next_xact(age)
        number, witness = position.newest, position.witness
        if newest is not None:
            number, seq, record_id = newest
            witness = Witness.of(seq, record_id, head.issued, next_xact)
        window = position.done.joined(head.now.up_to(number))
        within = replace(
            position, window=window, witness=witness, seq=position.foreign, upto=highest
        )
        if count <= limit:
            return _page(within, rows, limit + 1, is_last=True)
        if memory_id is None:
            is_ordered = next_xact is not None and head.stands is not None
            lowest = await self._lowest(within, highest, position.witness if is_ordered else None)
            if lowest is None:
                return _nothing_yet(position)
            within = replace(within, seq=lowest - 1)
        # For one memory the whole window is searched.
        return await self._same_window(within, window, memory_id, limit)

    async def _lowest(
        self, position: FollowPosition, highest: int, witness: Witness | None
    ) -> int | None:
        """Return the lowest `seq` in a position's window; None if the window is not all here.

        A transaction with more rows than a statement's limit is read completely, because any of
        its rows may have the lowest `seq`.

        Args:
            highest: the highest `seq` of all records.
            witness: the witness of the position before, if it still exists and the server gives a
                transaction its number before its first `seq`.
        """
        lowest, before = highest + 1, None
        if witness is not None and witness.next_xact is not None:
            lowest, before = max(witness.seq, position.foreign) + 1, witness.next_xact
        for after, end in position.ranges(before):
            most, is_more = self._rows_at_once, True
            while is_more:
                arguments = [str(after), str(end), position.foreign, most]
                sql = in_schema(LOWEST, self._schema)
                ((text,),) = await self._fetch(sql, *arguments)
                now, count, first, number = json.loads(text)
                if Snapshot.parse(now).xmax <= position.newest:
                    return None
                if first is not None:
                    lowest = min(lowest, first)
                is_more = count == most
                if is_more and number - 1 > after:
                    after = number - 1  # it may have more rows
                else:
                    most *= 8
        return lowest

    async def _same_window(
        self, position: FollowPosition, window: Snapshot, memory_id: str | None, limit: int
    ) -> FollowRead[FollowPosition]:
        sql = SAME_WINDOW if memory_id is None else SAME_WINDOW_OF_MEMORY
        upto = _MOST_SEQ if position.upto is None else position.upto
        most = self._rows_at_once
        arguments = [
            str(position.done),
            position.foreign,
            most,
            limit,
            str(window),
            position.seq,
            upto,
        ]
        if memory_id is not None:
            arguments.append(memory_id)
        head, _, rows = await self._rows(sql, position, arguments)
        if head.is_behind(position):
            return _nothing_yet(position)
        return _page(position, rows, limit, is_last=False)

    async def _rows(
        self, sql: str, position: FollowPosition, arguments: list[Any]
    ) -> tuple[_Head, list[Any], list[Sequence[Any]]]:
        """Return the server's state, the statement's other results, and a page's rows."""
        seq = None if position.witness is None else position.witness.seq
        table = f"{self._schema}.history"
        sql = in_schema(sql, self._schema)
        rows = list(await self._fetch(sql, table, str(position.newest), seq, *arguments))
        (head,) = (row for row in rows if row[0] is None)
        answer = json.loads(head[3])
        return _Head.parse(*answer[:6]), answer[6:], [row for row in rows if row[0] is not None]

    async def _answer(self, sql: str) -> Any:
        ((answer,),) = await self._fetch(in_schema(sql, self._schema), f"{self._schema}.history")
        return json.loads(answer)


def _nothing_yet(position: FollowPosition) -> FollowRead[FollowPosition]:
    """Return an empty page, for a replica that has not yet replayed up to the position."""
    return FollowRead([], lambda _: position, position, is_last=True)


def _page(
    position: FollowPosition, rows: Sequence[Sequence[Any]], limit: int, *, is_last: bool
) -> FollowRead[FollowPosition]:
    """Return a page's records; a page that was not cut off ends the window.

    A `seq` may be a text, because a user's pool may decode it so.
    """
    wanted = [row for row in rows if row[1]]
    is_whole = len(rows) < limit and not (rows and rows[-1][2])

    def position_after(index: int) -> FollowPosition:
        if is_whole and index == len(wanted) - 1:
            return position.after_window
        return replace(position, seq=int(wanted[index][0]))

    end = position.after_window if is_whole else replace(position, seq=int(rows[-1][0]))
    return FollowRead([record_from_row(row[3:]) for row in wanted], position_after, end, is_last)
