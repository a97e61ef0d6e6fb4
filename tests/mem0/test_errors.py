"""Errors with results and reports reach the caller in another process whole."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from async_history import HistoryError, RollbackReport
from async_history.mem0 import HistoryNotWritten, RollbackIncomplete

pytestmark = [pytest.mark.mem0, pytest.mark.once]

ERRORS: list[HistoryError] = [
    HistoryNotWritten("not written", {"results": []}, [{"id": "1"}], ["1"]),
    RollbackIncomplete(RollbackReport(id="1", done=True), {"m": OSError("no space")}),
]


def _pickled(error: HistoryError) -> Any:
    return pickle.loads(pickle.dumps(error))  # noqa: S301 - of our own


@pytest.mark.parametrize("again", [_pickled, copy.copy, copy.deepcopy])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_is_pickled_and_copied(
    error: HistoryError, again: Callable[[HistoryError], HistoryError]
) -> None:
    error.add_note("call it again")
    other = again(error)
    assert type(other) is type(error)
    assert (str(other), other.args, other.__notes__) == (str(error), error.args, error.__notes__)
    for name, value in vars(error).items():
        assert repr(getattr(other, name)) == repr(value)
