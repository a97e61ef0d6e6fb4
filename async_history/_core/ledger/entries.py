"""Entries of the ledger: leaves that say which other leaves were removed, and how."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from async_history._core.ledger.leaves import ENTRY, Bundle, values_bundle
from async_history._core.ledger.tree import Range
from async_history.errors import StorageCorrupt

ERASED: Final = "erased"
PRUNED: Final = "pruned"
RESET: Final = "reset"
_HOW: Final = (ERASED, PRUNED, RESET)
"""How leaves are removed. Each is counted in the report, so another one would hide a removal."""


@dataclass(frozen=True, slots=True)
class Removed:
    """The content of an entry: how leaves were removed (`ERASED`, `PRUNED` or `RESET`), and their
    places."""

    how: str
    places: Sequence[Range]
    """Ranges of places, with exclusive ends."""
    at: str

    def text(self) -> str:
        """Return the text of the entry."""
        return json.dumps(
            {"how": self.how, "places": self.places, "at": self.at},
            ensure_ascii=False,
            separators=(",", ":"),
        )


def removed_from(text: str) -> Removed:
    """Return the content of an entry's text.

    Raises:
        StorageCorrupt: it is not the text of an entry.
    """
    try:
        given = json.loads(text)
        how, places = given["how"], [(int(a), int(b)) for a, b in given["places"]]
        found = Removed(_HOW[_HOW.index(how)], places, given["at"])
    except (KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise StorageCorrupt("an entry of the ledger is damaged") from error
    return found


def ranges_of(places: Iterable[int]) -> list[Range]:
    """Return places as ranges."""
    return joined((place, place + 1) for place in sorted(set(places)))


def joined(ranges: Iterable[Range]) -> list[Range]:
    """Return ordered ranges, with adjacent ones joined."""
    found: list[Range] = []
    for first, end in ranges:
        if found and found[-1][1] == first:
            found[-1] = (found[-1][0], end)
        else:
            found.append((first, end))
    return found


def entry_bundle(removed: Removed) -> Bundle:
    """Return the leaf of an entry."""
    text = removed.text()
    return values_bundle(ENTRY, [text], [[text]])
