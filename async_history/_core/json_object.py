"""JSON objects that belong to a record: kept as text, and parsed when they are looked at."""

import json
import json.encoder
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from async_history.errors import InvalidInput

_ENCODER: Final = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")
)
_make_encoder: Final[Any] = getattr(json.encoder, "c_make_encoder", None)


def _new_encode() -> Callable[[dict[str, Any]], str]:
    """Return the function that encodes; `JSONEncoder.encode` makes an encoder in each call."""
    if _make_encoder is None:
        return _ENCODER.encode
    chunks: Callable[[dict[str, Any], int], tuple[str, ...]] = _make_encoder(
        None, _ENCODER.default, json.encoder.encode_basestring, None, ":", ",", True, False, False
    )
    return lambda value: "".join(chunks(value, 0))


_encode: Final = _new_encode()

_KEPT: Final = 4_096
_LONGEST_KEPT: Final = 512
"""How many objects are kept once encoded, and the longest of them, in characters: a few megabytes.
As a rule, a memory's metadata are the same in its next record."""
_CONSTANTS: Final = frozenset((str, int, bool, type(None)))
"""The types of values that are known by type and equality. Floats are not: 0.0 equals -0.0."""
_kept: Final[dict[tuple[Any, ...], "JsonObject"]] = {}


class JsonObject(Mapping[str, Any]):
    """A JSON object, to be read like a dict. It is equal to any mapping with the same content.

    Args:
        text: the object as JSON.
        content: the same as a dictionary, if there is one that is never changed.
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
            parsed = json.loads(self.text)
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
        InvalidInput: it is not a mapping, or has what JSON can't hold exactly: a key that is not
            text, NaN, a lone surrogate, an object of another type.
    """
    if type(value) is JsonObject:
        return value
    if type(value) is not dict:  # asked first: to ask whether it is a Mapping takes much longer
        if not isinstance(value, Mapping):
            raise InvalidInput(f"{name} must be a mapping, not {type(value).__name__}")
        value = dict(value)
    types = tuple(map(type, value.values()))
    content = (*value.items(), types)
    try:
        known = _kept.get(content)
    except TypeError:  # it has a list, a mapping, or something else that may change
        known = None
    if known is not None:
        return known
    try:
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"the key {key!r} is not text")
        text = _encode(value)
        if not text.isascii():
            text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"{name} can't be stored as JSON: {error}") from error
    made = JsonObject(text)
    if len(text) <= _LONGEST_KEPT and _CONSTANTS.issuperset(types):
        if len(_kept) >= _KEPT:
            _kept.clear()
        _kept[content] = made
    return made


def object_of_texts(content: dict[str, str]) -> JsonObject:
    """Return texts by key, which are checked and never changed, as a JSON object."""
    if len(content) == 1:
        ((key, text),) = content.items()
        if not _needs_escape(key) and not _needs_escape(text):
            return JsonObject(f'{{"{key}":"{text}"}}', content)
    return JsonObject(_encode(content), content)


def _needs_escape(text: str) -> bool:
    return '"' in text or "\\" in text or not text.isprintable()


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
