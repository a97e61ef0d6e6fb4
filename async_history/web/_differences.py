"""The difference of two texts, word by word. The work is bounded: texts may have megabytes."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Final, Literal

_AROUND: Final = 200
"""Characters of equal text that are shown before and after a change."""
_MOST_WORDS: Final = 120
"""Most words on either side that are compared: the time can grow with the cube of their number."""
_WORD: Final = re.compile(r"\w+\s*|[^\w\s]+\s*|\s+")
_WORD_BEGUN: Final = re.compile(r"^\S*")
_WORD_ENDED: Final = re.compile(r"\S*\Z")


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a difference: in both texts, in one of them, or left out."""

    kind: Literal["same", "old", "new", "gap"]
    text: str


def difference(old: str, new: str, most: int) -> Sequence[Piece]:
    """Return the old text with its changes into the new one.

    Equal text far from the changes is left out. Each side of a change ends after `most` characters.
    """
    start = _word_start(old, _common_start(old, new))
    end = _common_end(old, new, start)
    pieces = list(_before(old[:start]))
    pieces += _changes(old[start : len(old) - end], new[start : len(new) - end], most)
    pieces += _after(old[len(old) - end :])
    return pieces


def _common_start(old: str, new: str) -> int:
    """Return how many characters two texts begin with alike. Slices compare at memory's speed."""
    low, high = 0, min(len(old), len(new))
    while low < high:
        middle = (low + high + 1) // 2
        if old[low:middle] == new[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _common_end(old: str, new: str, start: int) -> int:
    """Return how many characters two texts end with alike, from a gap between words on."""
    low, high = 0, min(len(old), len(new)) - start
    while low < high:
        middle = (low + high + 1) // 2
        if old[len(old) - middle : len(old) - low] == new[len(new) - middle : len(new) - low]:
            low = middle
        else:
            high = middle - 1
    shared = old[len(old) - low :]
    return low - _length(_WORD_BEGUN, shared[:_AROUND])


def _word_start(text: str, at: int) -> int:
    """Return where the word begins that a place is in or after."""
    before = text[max(0, at - _AROUND) : at]
    return at - _length(_WORD_ENDED, before)


def _length(pattern: re.Pattern[str], text: str) -> int:
    found = pattern.search(text)
    return 0 if found is None else len(found.group())


def _before(text: str) -> Iterator[Piece]:
    if len(text) > _AROUND:
        yield Piece("gap", "")
    if text:
        yield Piece("same", text[-_AROUND:])


def _after(text: str) -> Iterator[Piece]:
    if text:
        yield Piece("same", text[:_AROUND])
    if len(text) > _AROUND:
        yield Piece("gap", "")


def _changes(old: str, new: str, most: int) -> Iterator[Piece]:
    old_words, new_words = _WORD.findall(old[:most]), _WORD.findall(new[:most])
    if max(len(old_words), len(new_words)) > _MOST_WORDS or max(len(old), len(new)) > most:
        yield from _replaced(old, new, most)
        return
    for kind, a, b, c, d in SequenceMatcher(None, old_words, new_words, False).get_opcodes():
        if kind == "equal":
            yield Piece("same", "".join(old_words[a:b]))
        else:
            yield from _replaced("".join(old_words[a:b]), "".join(new_words[c:d]), most)


def _replaced(old: str, new: str, most: int) -> Iterator[Piece]:
    if old:
        yield Piece("old", old[:most])
        if len(old) > most:
            yield Piece("gap", "")
    if new:
        yield Piece("new", new[:most])
        if len(new) > most:
            yield Piece("gap", "")
