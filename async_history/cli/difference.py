"""What changed between two versions of a text: line by line, and word by word within a line."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import zip_longest
from typing import Any, Final, Literal

Kind = Literal["same", "removed", "added"]
Sign = Literal[" ", "+", "-", "~", "…"]

_WORDS: Final = re.compile(r"[^\W\u2e80-\u9fff]+|\s+|.")
"""A word, a space, a sign; one character in scripts without spaces (Han, Kana)."""
_WORD_CHARACTERS: Final = 10_000
_LINES: Final = 5_000
"""Longer texts are not compared by words, or not at all: the time grows with the square."""
_LEAST_ALIKE: Final = 0.4
"""Lines less similar than this are shown one below the other, not compared by words."""
_CONTEXT: Final = 1


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a difference: removed (-), added (+), changed (~), the same, or left out (…)."""

    sign: Sign
    pieces: Sequence[tuple[Kind, str]]


def difference(before: str | None, after: str | None) -> list[Line]:
    """Return the lines that differ between two texts. None means that there is no text."""
    if before == after:
        return []
    old = [] if before is None else before.split("\n")
    new = [] if after is None else after.split("\n")
    if before is None or after is None:
        return [_removed_line(line) for line in old] + [_added_line(line) for line in new]
    by_words = len(before) + len(after) <= _WORD_CHARACTERS
    if len(old) > _LINES or len(new) > _LINES:
        return [_removed_line(line) for line in old] + [_added_line(line) for line in new]
    if len(old) == len(new) == 1:
        return list(_changed_lines(before, after, by_words))
    lines: list[Line] = []
    for tag, i1, i2, j1, j2 in _matcher(old, new).get_opcodes():
        if tag == "equal":
            lines += _fold(old[i1:i2], at_start=i1 == 0, at_end=i2 == len(old))
        else:
            for removed, added in zip_longest(old[i1:i2], new[j1:j2]):
                lines += _changed_lines(removed, added, by_words)
    return lines


def metadata_changes(
    before: Mapping[str, Any] | None, after: Mapping[str, Any] | None
) -> list[Line]:
    """Return a line for each key of a memory's metadata that differs; none where it is not known
    (None).
    """
    if after is None:
        return []
    old = {} if before is None else before
    lines: list[Line] = []
    for key in sorted({*old, *after}):
        name = f"metadata {key}: "
        if key not in old:
            lines.append(_added_line(name + _json(after[key])))
        elif key not in after:
            lines.append(_removed_line(name + _json(old[key])))
        elif old[key] != after[key]:
            values: list[tuple[Kind, str]] = [
                ("removed", _json(old[key])),
                ("added", _json(after[key])),
            ]
            lines.append(Line("~", [("same", name), *values]))
    return lines


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _matcher(old: Sequence[str], new: Sequence[str]) -> "SequenceMatcher[str]":
    # Spaces and empty lines are frequent: as anchors they are slow, and would separate two words
    # that changed together.
    return SequenceMatcher(lambda text: not text.strip(), old, new, autojunk=False)


def _removed_line(line: str) -> Line:
    return Line("-", [("removed", line)])


def _added_line(line: str) -> Line:
    return Line("+", [("added", line)])


def _fold(lines: Sequence[str], *, at_start: bool, at_end: bool) -> Iterator[Line]:
    """Yield the lines next to a change, and the number of the lines between."""
    head = 0 if at_start else _CONTEXT
    tail = 0 if at_end else _CONTEXT
    left_out = len(lines) - head - tail
    if left_out <= 1:
        yield from (Line(" ", [("same", line)]) for line in lines)
        return
    yield from (Line(" ", [("same", line)]) for line in lines[:head])
    yield Line("…", [("same", f"{left_out:,} lines unchanged")])
    yield from (Line(" ", [("same", line)]) for line in lines[len(lines) - tail :])


def _changed_lines(removed: str | None, added: str | None, by_words: bool) -> Iterator[Line]:
    pieces = None
    if by_words and removed is not None and added is not None:
        pieces = _word_pieces(_WORDS.findall(removed), _WORDS.findall(added))
    if pieces is not None:
        yield Line("~", pieces)
        return
    if removed is not None:
        yield _removed_line(removed)
    if added is not None:
        yield _added_line(added)


def _word_pieces(old: Sequence[str], new: Sequence[str]) -> list[tuple[Kind, str]] | None:
    """Return the removed, added and same words, or None if too few are the same."""
    matcher = _matcher(old, new)
    if matcher.ratio() < _LEAST_ALIKE:
        return None
    pieces: list[tuple[Kind, str]] = []
    for tag, i1, i2, j1, j2 in matcher.get_opcodes():
        if tag == "equal":
            pieces.append(("same", "".join(old[i1:i2])))
        else:
            change: tuple[tuple[Kind, str], ...] = (
                ("removed", "".join(old[i1:i2])),
                ("added", "".join(new[j1:j2])),
            )
            pieces += [piece for piece in change if piece[1]]
    return pieces
