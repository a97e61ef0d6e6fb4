"""The SQL statements that a database provides for the ledger."""

from dataclasses import dataclass

from async_history._core.encryption.key_statements import Statement


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerStatements:
    """A database's statements for the ledger, each with its parameters in order after the colon.

    A list is JSON text. Hashes are binary. A row of a bundle has its first place, `turn`, `after`
    (see `StoredBundle`), kind, size, hashes, whether its salts are keyed (0 or 1), and names.

    Attributes:
        lock: keeps other transactions from assigning places until this one has ended.
        has_key_tables: returns whether the store has the tables of keys; None if it always has.
        is_encrypted: returns whether they have a key.
        size: returns the number of leaves with a place.
        append: adds a bundle without a place: kind, size, hashes, is_keyed, names.
        waiting: returns number, kind, size, hashes, is_keyed, names of bundles without a place, in
            the order of their numbers: limit, and the number of leaves that is enough.
        place: assigns places to bundles: list of number and first place.
        rewrite: replaces a bundle's hashes and names: hashes, names, first place.
        leaf_count: returns the number of hashes of all bundles with a place; None if that takes as
            long as reading them.
        rewrite_all: removes salts and names of all leaves of records and owners, and returns first
            place and number of hashes of their bundles; None if that is done bundle by bundle.
        bundles: returns the bundles that begin in a range of places, in order: its first place,
            its end.
        bundles_at: returns the bundles with these places: list of places.
        entries: returns the bundles of entries, in order.
        tiles: returns level, number and hashes of tiles: list of levels and numbers.
        write_tile: writes or replaces a tile: level, number, hashes.
        names: returns the places of names: list of keys.
        write_names: adds names: list of key and place.
        remove_names: removes names: list of key and place.
        records: returns position, whether the stored owner is that of its memory (0 or 1), the ten
            columns, context and cause of records: list of ids.
        lines: returns position, id, and the values as the lines of a leaf (see `leaves`), of the
            records from one to another, in order: first id, last id, limit; None if the lines are
            better made here. The stored owners are not compared, see `owner_counts`.
        owners: returns memory and owner, as JSON, of memories with an owner: list of memories.
        memories: returns those memories of a list that have a record.
        scan: allows plans that read a whole table, until the transaction ends; None if they always
            are.
        record_count: returns the number of records.
        owner_counts: returns the number of memories with an owner; and if `lines` is not None, of
            records whose owner is not that of their memory.
        record_ids: returns position and id of the next records: first position, limit.
        operations: returns id, kind, begun_at, actor_id, process_id, host, database_role,
            arguments, ended_at, error, records and messages of operations: list of ids.
        operations_of: returns the ids of an actor's operations: actor_id.
        operation_counts: returns the number of operations, and of those that have ended.
    """

    lock: Statement
    has_key_tables: Statement
    is_encrypted: Statement
    size: Statement
    append: Statement
    waiting: Statement
    place: Statement
    rewrite: Statement
    leaf_count: Statement
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
    lines: Statement
    owners: Statement
    memories: Statement
    scan: Statement
    record_count: Statement
    owner_counts: Statement
    record_ids: Statement
    operations: Statement
    operations_of: Statement
    operation_counts: Statement
