"""What a database says in its own SQL for the ledger."""

from dataclasses import dataclass

from async_history._core.key_statements import Statement


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerStatements:
    """A database's statements for the ledger, each with what it takes, in that order.

    A list is JSON text. Hashes are binary. A bundle is its first place, its turn and what it comes
    after (see `StoredBundle`), kind, size, hashes, whether its salts are keyed (0 or 1), names.

    Attributes:
        lock: lets no other transaction give places until this one has ended.
        has_key_tables: returns whether the store has the tables of keys; None where each has.
        is_encrypted: returns whether they have a key.
        size: returns how many leaves have a place.
        append: adds a bundle without a place: kind, size, hashes, is_keyed, names.
        waiting: returns number, kind, size, hashes, is_keyed, names of bundles without a place, in
            the order of their numbers: limit, and how many leaves are enough.
        place: gives bundles their place: list of number and first place.
        rewrite: replaces a bundle's hashes and names: hashes, names, first place.
        rewrite_all: takes salts and names of all leaves of records and owners, and returns first
            place and size of their bundles; None where that is done bundle by bundle.
        bundles: returns bundles in order: first place, limit.
        bundles_at: returns the bundles that have these places: list of places.
        entries: returns the bundles of entries, in order.
        tiles: returns level, number and hashes of tiles: list of levels and numbers.
        write_tile: writes a tile, or replaces it: level, number, hashes.
        names: returns the places of names: list of keys.
        write_names: adds names: list of key and place.
        remove_names: removes names: list of key and place.
        records: returns position, whether the owner that is stored with it is its memory's (0 or
            1), the ten columns, context and cause of records: list of ids.
        owners: returns memory and owner, as JSON, of memories that have one: list of memories.
        memories: returns those memories of a list that have a record.
        record_count: returns how many records there are.
        owner_count: returns how many memories have an owner.
        record_ids: returns position and id of the next records: position after which, limit.
        operations: returns id, kind, begun_at, actor_id, process_id, host, database_role,
            arguments, ended_at, error, records and messages of operations: list of ids.
        operations_of: returns the ids of the operations of an actor: actor_id.
        operation_counts: returns how many operations there are, and how many have ended.
    """

    lock: Statement
    has_key_tables: Statement
    is_encrypted: Statement
    size: Statement
    append: Statement
    waiting: Statement
    place: Statement
    rewrite: Statement
    rewrite_all: Statement
    bundles: Statement
    bundles_at: Statement
    entries: Statement
    tiles: Statement
    write_tile: Statement
    names: Statement
    write_names: Statement
    remove_names: Statement
    records: Statement
    owners: Statement
    memories: Statement
    record_count: Statement
    owner_count: Statement
    record_ids: Statement
    operations: Statement
    operations_of: Statement
    operation_counts: Statement
