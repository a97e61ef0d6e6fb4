"""Checks for texts that a file in UTF-16 can't hold: SQLite would replace U+FFFE and U+FFFF.

A file created with `PRAGMA encoding = 'UTF-16'` keeps that encoding.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from async_history._core.records.owners import owner_text
from async_history._core.records.rows import row_of
from async_history._core.writing.submissions import AddRecords, SaveMessages, Submission
from async_history.errors import InvalidInput

_NOT_HELD: Final = re.compile("[\ufffe\uffff]")
_NOT_HELD_AS_JSON: Final = re.compile(r"\\uff(fe|ff)", re.IGNORECASE)


def check_submission(submission: Submission) -> None:
    """Check that a file in UTF-16 can hold a submission's texts unchanged.

    Raises:
        InvalidInput: SQLite would change one of them.
    """
    if isinstance(submission, SaveMessages):
        _check([submission.session_scope])
        for message in submission.messages:
            _check([message.role, message.content, message.name])
    elif isinstance(submission, AddRecords):
        for record in submission.wanted:
            _check(row_of(record))
    else:
        _check(map(owner_text, submission.owners.values()))


def check_parameters(parameters: Mapping[str, Any]) -> None:
    """Check that a file in UTF-16 can hold the texts that a SELECT searches for.

    Raises:
        InvalidInput: no record there can have such a text.
    """
    values = list(parameters.values())
    _check(values)
    for value in values:
        if isinstance(value, str) and _NOT_HELD_AS_JSON.search(value):
            # It may be a JSON array of texts: check the decoded ones.
            try:
                decoded = json.loads(value)
            except ValueError:
                continue
            _check(decoded if isinstance(decoded, list) else ())


def _check(values: Iterable[object]) -> None:
    for value in values:
        if isinstance(value, str) and _NOT_HELD.search(value):
            raise InvalidInput(
                f"{value[:60]!r} has U+FFFE or U+FFFF, which a SQLite file in UTF-16 can't hold; "
                "leave them out, or copy the history into a new file (copy_history), which is "
                "in UTF-8"
            )
