"""The message buffers: what a batch reads from them and writes to them."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete, insert, select

from async_history._core.records.messages import MESSAGES_KEPT
from async_history._core.writing.message_buffers import Buffer, MessageRow
from async_history._core.writing.submissions import SaveMessages
from async_history._sql.dialects import in_parts
from async_history._sql.errors import RowsLeftOut
from async_history._sql.names import is_cut, key_of
from async_history._sql.transaction import Transaction


async def find_buffers(
    transaction: Transaction, submissions: Sequence[SaveMessages]
) -> dict[str, Buffer]:
    """Return the stored message buffers of these submissions' scopes."""
    messages = transaction.tables.messages
    last_ids = {submission.ids[-1] for submission in submissions}
    scopes = {key_of(one.session_scope): one.session_scope for one in submissions}
    found: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for keys in in_parts(scopes):
        rows = await transaction.fetch(
            select(messages.c.session_scope, messages.c.seq, messages.c.id)
            .where(messages.c.session_scope.in_(keys))
            .order_by(messages.c.session_scope, messages.c.seq)
        )
        for key, seq, message_id in rows:
            found[scopes[key]].append((seq, message_id))
    return {
        scope: Buffer(len(rows), rows[0][0], rows[-1][0], frozenset(i for _, i in rows) & last_ids)
        for scope, rows in found.items()
    }


async def save_messages(transaction: Transaction, given: Sequence[MessageRow]) -> None:
    """Add messages in order, and remove those that are no longer in a buffer.

    Raises:
        RowsLeftOut: some messages were not inserted; the caller rolls back.
    """
    messages = transaction.tables.messages
    rows: list[dict[str, Any]] = []
    for message_id, scope, role, content, name, created_at in given:
        transaction.last_message += 1
        key = key_of(scope)
        rows.append(
            {
                "seq": transaction.last_message,
                "id": message_id,
                "session_scope": key,
                "role": role,
                "content": content,
                "name": name,
                "created_at": created_at,
                "long_scope": scope if is_cut(key) else None,
            }
        )
    await transaction.execute(insert(messages), rows)
    of_scope: dict[str, list[int]] = defaultdict(list)
    for keys in in_parts(dict.fromkeys([row["session_scope"] for row in rows])):
        found = await transaction.fetch(
            select(messages.c.session_scope, messages.c.seq)
            .where(messages.c.session_scope.in_(keys))
            .order_by(messages.c.seq)
        )
        for key, seq in found:
            of_scope[key].append(seq)
    left_out = {row["seq"] for row in rows}.difference(*of_scope.values())
    if left_out:
        raise RowsLeftOut(f"a trigger or rule left out {len(left_out)} of {len(rows)} messages")
    old = [seq for seqs in of_scope.values() for seq in seqs[:-MESSAGES_KEPT]]
    for part in in_parts(old):
        await transaction.execute(delete(messages).where(messages.c.seq.in_(part)))
