"""The owners of memories: finding them, and giving owners to memories and their records."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from sqlalchemy import insert, select, update

from async_history._core.records.owners import SCOPES, Owner
from async_history._sql.dialects import in_parts
from async_history._sql.marks import add_marks, owner_marks
from async_history._sql.names import is_cut, key_of, keys_of
from async_history._sql.rows import (
    columns_read,
    names_from_row,
    owner_of,
    owner_row,
    record_from_row,
    scopes_of,
    values_of,
)
from async_history._sql.transaction import Transaction


async def find_owners(transaction: Transaction, memory_ids: Iterable[str]) -> dict[str, Owner]:
    """Return the owners of these memories, where they have one."""
    owners = transaction.tables.owners
    found: dict[str, Owner] = {}
    for keys in in_parts(keys_of(memory_ids)):
        for row in await transaction.fetch(select(owners).where(owners.c.memory_id.in_(keys))):
            known = names_from_row(dict(zip(owners.c.keys(), row, strict=True)))
            owner = owner_of([known[scope] for scope in SCOPES])
            if owner is not None:
                found[known["memory_id"]] = owner
    return found


async def give_owners(transaction: Transaction, owners: Mapping[str, Owner]) -> None:
    """Give owners to memories and to their records."""
    table, history = transaction.tables.owners, transaction.tables.history
    await transaction.execute(
        insert(table), [owner_row(name, owner) for name, owner in owners.items()]
    )
    by_key = {key_of(name): name for name in owners}
    seqs_of: dict[str, list[int]] = defaultdict(list)
    for keys in in_parts(by_key):
        found = select(history.c.memory_id, history.c.seq).where(history.c.memory_id.in_(keys))
        for key, seq in await transaction.fetch(found):
            seqs_of[by_key[key]].append(seq)
    for name, seqs in seqs_of.items():
        await _own_records(transaction, name, seqs, owners[name])
    if seqs_of or not transaction.has_owners:
        transaction.next_version()


async def _own_records(
    transaction: Transaction, memory_id: str, seqs: Sequence[int], owner: Owner
) -> None:
    """Give an owner to a memory's records."""
    history = transaction.tables.history
    key = key_of(memory_id)
    scopes = scopes_of(owner)
    keys = {name: None if one is None else key_of(one) for name, one in scopes.items()}
    if any(one is not None and is_cut(one) for one in (*keys.values(), key)):
        await _own_one_by_one(transaction, seqs, owner)
    else:
        await transaction.execute(update(history).where(history.c.memory_id == key).values(**keys))
    marks = ((mark, seq) for seq in seqs for mark in owner_marks(owner))
    await add_marks(transaction.connection, transaction.tables, marks)


async def _own_one_by_one(transaction: Transaction, seqs: Sequence[int], owner: Owner) -> None:
    """Give an owner to records one by one, because each has its own long names."""
    history = transaction.tables.history
    for part in in_parts(seqs):
        found = select(*columns_read(transaction.tables)).where(history.c.seq.in_(part))
        for row in await transaction.fetch(found):
            record = replace(record_from_row(row), owner=owner)
            await transaction.execute(
                update(history).where(history.c.seq == row[0]).values(**values_of(record, row[11]))
            )
