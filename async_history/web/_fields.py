"""The fields of a page's forms, from a query or a form. Empty fields count as not given."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, cast

from async_history._core.records.owners import SCOPES
from async_history.errors import InvalidInput
from async_history.web._reach import OwnerFilter
from async_history.web._view import RecordFilter

_TEXTS: Final = ("memory_id", "actor_id", "role", "event", "text")
_INSTANTS: Final = ("since", "until")


class Fields:
    """The fields of a form.

    Args:
        given: their texts, by name.
    """

    def __init__(self, given: Mapping[str, str]) -> None:
        self._given = {name: value for name, value in given.items() if value}

    def text(self, name: str) -> str | None:
        """Return a field; None if it is empty."""
        return self._given.get(name)

    def required(self, name: str) -> str:
        """Return a field.

        Raises:
            InvalidInput: it is empty.
        """
        if name not in self._given:
            raise InvalidInput(f"{name} is missing")
        return self._given[name]

    def instant(self, name: str) -> datetime | None:
        """Return the time in a field, in UTC unless it has an offset; None if it is empty.

        Raises:
            InvalidInput: it is not a time.
        """
        text = self._given.get(name)
        if text is None:
            return None
        try:
            found = datetime.fromisoformat(text.strip())
            return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
        except (ValueError, OverflowError):
            raise InvalidInput(f"{name} must be a time, such as 2026-01-31T09:00") from None

    def required_instant(self, name: str) -> datetime:
        """Return the time in a field; see `instant`.

        Raises:
            InvalidInput: it is empty, or not a time.
        """
        self.required(name)
        found = self.instant(name)
        assert found is not None  # noqa: S101 - the field is not empty
        return found

    def number(self, name: str, *, least: int, most: int) -> int | None:
        """Return the whole number in a field; None if it is empty.

        Raises:
            InvalidInput: it is not a whole number, or outside of these bounds.
        """
        text = self._given.get(name)
        if text is None:
            return None
        is_number = text.isascii() and text.isdigit() and len(text) <= len(str(most))
        if not is_number or not least <= int(text) <= most:
            raise InvalidInput(f"{name} must be a whole number from {least} to {most:,}")
        return int(text)

    def owner(self) -> OwnerFilter:
        """Return the owner that is asked for."""
        return cast(OwnerFilter, self._only(SCOPES))

    def cause(self) -> Mapping[str, str] | None:
        """Return a cause of one key and its text; None without a key.

        Raises:
            InvalidInput: there is only one of the two.
        """
        key, value = self.text("cause_key"), self.text("cause_value")
        if (key is None) != (value is None):
            raise InvalidInput("a cause is found by its key and its text: give both")
        return None if key is None or value is None else {key: value}

    def records(self) -> RecordFilter:
        """Return the filter of records that is asked for."""
        wanted: dict[str, Any] = self._only((*_TEXTS, *SCOPES))
        wanted |= {name: self.instant(name) for name in _INSTANTS if name in self._given}
        if (cause := self.cause()) is not None:
            wanted["cause"] = cause
        return cast(RecordFilter, wanted)

    def memory_ids(self) -> tuple[str, ...]:
        """Return the named memories: one, or one a line."""
        memory_id = self.text("memory_id")
        return self.lines("memory_ids") if memory_id is None else (memory_id,)

    def lines(self, name: str) -> tuple[str, ...]:
        """Return the lines of a field that are not empty."""
        lines = self._given.get(name, "").replace("\r\n", "\n").split("\n")
        return tuple(line for line in lines if line)

    def as_dict(self) -> dict[str, str]:
        """Return the fields that are not empty."""
        return dict(self._given)

    def _only(self, names: Iterable[str]) -> dict[str, Any]:
        return {name: self._given[name] for name in names if name in self._given}
