"""JSON objects of a record: kept as text, and parsed when they are read."""

import json
import json.encoder
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from async_history._core.validation import shown
from async_history.errors import InvalidInput, StorageCorrupt

_ENCODER: Final = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")
)
_make_encoder: Final[Any] = getattr(json.encoder, "c_make_encoder", None)


def _new_encode() -> Callable[[dict[str, Any]], str]:
    """Return the encoding function; `JSONEncoder.encode` makes an encoder in each call."""
    if _make_encoder is None:
        return _ENCODER.encode
    chunks: Callable[[dict[str, Any], int], tuple[str, ...]] = _make_encoder(
        None, _ENCODER.default, json.encoder.encode_basestring, None, ":", ",", True, False, False
    )
    return lambda value: "".join(chunks(value, 0))


_encode: Final = _new_encode()

_KEPT: Final = 4_096
_LONGEST_KEPT: Final = 512
"""The number of encoded objects in the cache, and their maximum length in characters: a few
megabytes. A memory's metadata are usually the same in its next record.
"""
MOST_LEVELS: Final = 100
"""The maximum nesting. Python reads a thousand levels, less the depth of its own call stack at that
point.
"""
_BRACKETS: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[][{}]')
_CONSTANTS: Final = frozenset((str, int, bool, type(None)))
"""Types whose values are identified by type and equality. Not floats: 0.0 equals -0.0."""
_kept: Final[dict[tuple[Any, ...], "JsonObject"]] = {}


class JsonObject(Mapping[str, Any]):
    """A JSON object, to be read like a dict. It is equal to any mapping with the same content.

    Args:
        text: the object as JSON.
        content: the same as a dictionary that is never changed, if there is one.
    """

    __slots__ = ("_parsed", "text")

    def __init__(self, text: str, content: dict[str, Any] | None = None) -> None:
        self.text = text
        self._parsed = content

    def content(self) -> Mapping[str, Any]:
        """Return the object as a dictionary, which must not be changed."""
        return self._content()

    def _content(self) -> dict[str, Any]:
        if self._parsed is None:
            parsed = parse_json(self.text)
            self._parsed = parsed if isinstance(parsed, dict) else {}
        return self._parsed

    def __getitem__(self, key: str) -> Any:
        return self._content()[key]

    def get(self, key: str, default: Any = None) -> Any:
        return self._content().get(key, default)

    def __iter__(self) -> Iterator[str]:
        return iter(self._content())

    def __len__(self) -> int:
        return len(self._content())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, JsonObject):
            return self.text == other.text or self._content() == other._content()
        return isinstance(other, Mapping) and self._content() == dict(other)

    def __hash__(self) -> int:
        return hash(frozenset(self._content()))

    def __repr__(self) -> str:
        return repr(self._content())


def json_object(name: str, value: object) -> JsonObject:
    """Return a mapping as a JSON object, its keys sorted.

    Raises:
        InvalidInput: it is not a mapping, has a value that JSON cannot represent exactly (a key
            that is not text, NaN, a lone surrogate, an object of another type), or is nested deeper
            than 100 levels.
    """
    if type(value) is JsonObject:
        return value
    if type(value) is not dict:  # checked first: checking for a Mapping takes much longer
        if not isinstance(value, Mapping):
            raise InvalidInput(f"{name} must be a mapping, not {type(value).__name__}")
        value = dict(value)
    types = tuple(map(type, value.values()))
    content = (*value.items(), types)
    try:
        known = _kept.get(content)
    except TypeError:  # it contains a list, a mapping, or another mutable value
        known = None
    if known is not None:
        return known
    try:
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"the key {shown(key)} is not text")
        text = _encode(value)
        if not text.isascii():
            text.encode()
        if is_deeper(text, MOST_LEVELS):
            raise ValueError(f"it is nested deeper than {MOST_LEVELS} levels")
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"{name} can't be stored as JSON: {error}") from error
    made = JsonObject(text)
    if len(text) <= _LONGEST_KEPT and _CONSTANTS.issuperset(types):
        if len(_kept) >= _KEPT:
            _kept.clear()
        _kept[content] = made
    return made


def is_deeper(text: str, levels: int) -> bool:
    """Return whether JSON is nested deeper than `levels`."""
    if text.count("{") + text.count("[") <= levels:
        return False
    depth = 0
    for found in _BRACKETS.finditer(text):
        if found[0] in "[{":
            depth += 1
            if depth > levels:
                return True
        elif found[0] in "]}":
            depth -= 1
    return False


def parse_json(text: str) -> Any:
    """Parse a stored text.

    Raises:
        StorageCorrupt: another program stored text that is not JSON, or is nested too deep for
            Python here.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StorageCorrupt(
            f"an owner, context or cause can't be read as JSON: {error}"
        ) from error


def is_readable(value: JsonObject) -> bool:
    """Return whether a stored text is a JSON object that can be written as UTF-8."""
    try:
        content = value.content()
        if "\\u" in value.text:
            _encode(dict(content)).encode()
    except (StorageCorrupt, ValueError, RecursionError):
        return False
    return value.text.lstrip().startswith("{")


def object_of_texts(content: dict[str, str]) -> JsonObject:
    """Return a JSON object of checked texts by key, which are never changed."""
    if len(content) == 1:
        ((key, text),) = content.items()
        if not _needs_escape(key) and not _needs_escape(text):
            return JsonObject(f'{{"{key}":"{text}"}}', content)
    return JsonObject(_encode(content), content)


def _needs_escape(text: str) -> bool:
    return '"' in text or "\\" in text or not text.isprintable()


quoted: Final = json.encoder.encode_basestring
"""Return a text as a JSON string."""


def json_text(value: Mapping[str, Any] | None) -> str | None:
    """Return an object's text; None for None.

    Raises:
        InvalidInput: as `json_object`.
    """
    if value is None:
        return None
    if type(value) is JsonObject:
        return value.text
    return json_object("a context or cause", value).text


def json_from_text(text: str | None) -> JsonObject | None:
    """Return the object of a text; None for None."""
    return None if text is None else JsonObject(text)
