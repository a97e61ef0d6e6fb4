"""The records of a batch's submissions, and what they need."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from async_history._core.records.owners import Owner
from async_history._core.records.records import (
    CAUSE,
    CONTEXT,
    MEMORY_ID,
    OWNER,
    Fields,
    HistoryRecord,
    fields_in_order,
)
from async_history._core.writing.submissions import AddFields, AddRecords, Submission


def only_new_records(batch: Sequence[Submission]) -> Sequence[AddRecords] | None:
    """Return a batch's submissions if all of them only add records; otherwise None."""
    additions = [s for s in batch if isinstance(s, AddRecords) and s.decided_by is None]
    return additions if len(additions) == len(batch) else None


def lone_addition(batch: Sequence[Submission]) -> AddRecords | None:
    """Return a batch's submission if it only adds one new record; otherwise None."""
    one = batch[0]
    if len(batch) == one.record_count == 1 and isinstance(one, AddRecords):
        return one if one.decided_by is None else None
    return None


def records_of(additions: Iterable[AddRecords]) -> list[HistoryRecord]:
    """Return the records of submissions, in order."""
    return [record for submission in additions for record in submission.records]


def fields_of(additions: Iterable[AddRecords]) -> Iterator[Fields]:
    """Yield the fields of submissions' records, in order, without creating the records."""
    for submission in additions:
        if type(submission) is AddFields:
            yield submission.fields
        else:
            yield from map(fields_in_order, submission.records)


def give_owners(additions: Iterable[AddRecords], owners: Mapping[str, Owner | None]) -> None:
    """Set the owners of new records, which were not yet returned to callers, by their memories."""
    for one in additions:
        if type(one) is AddFields:
            one.give_owners((owners[one.fields[MEMORY_ID]],))
        else:
            one.give_owners([owners[record.memory_id] for record in one.records])


def fields_have_details(fields: Iterable[Fields]) -> bool:
    """Return whether any record has values outside mem0's columns."""
    # A generator takes twice as long.
    return True in [not (one[OWNER] is one[CONTEXT] is one[CAUSE] is None) for one in fields]


def have_details(additions: Sequence[AddRecords]) -> bool:
    """Return whether any record has values outside mem0's columns."""
    single = [one.fields for one in additions if type(one) is AddFields]
    if fields_have_details(single):
        return True
    return len(single) < len(additions) and any(
        any(map(has_details, one.records)) for one in additions if type(one) is not AddFields
    )


def has_details(record: HistoryRecord) -> bool:
    """Return whether a record has values outside mem0's columns."""
    return record.owner is not None or record.cause is not None or record.context is not None


def ids_of(additions: Iterable[AddRecords]) -> list[str]:
    """Return the ids of submissions' records, in order."""
    return [record_id for submission in additions for record_id in submission.ids]


def ids_to_find(additions: Iterable[AddRecords], *, is_repeated: bool) -> list[str]:
    """Return the ids of submissions' records that may be stored.

    An id that was generated for a submission is only stored if an earlier try has written it. The
    records whose texts they repeat are among them.

    Args:
        is_repeated: whether an earlier try of the batch may have been committed.
    """
    ids: list[str] = []
    for one in additions:
        if is_repeated or one.names_ids:
            ids += one.ids
        if one.repeats is not None:
            ids.append(one.repeats.record_id)
    return ids
