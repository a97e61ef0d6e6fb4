"""Owners of memories: mem0's four scopes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, Final

from async_history._core.records.json_object import parse_json
from async_history._core.records.values import check_name
from async_history._core.validation import shown
from async_history.errors import InvalidInput, StorageCorrupt


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The owner of a memory: at least one of mem0's scopes.

    An owner is given once, and applies to all records of the memory, whoever writes them.
    """

    user_id: str | None = None
    """The user that the memory belongs to."""
    agent_id: str | None = None
    """The agent that it belongs to."""
    run_id: str | None = None
    """The run, or session, in which it was made."""
    app_id: str | None = None
    """The application that it belongs to."""

    def as_dict(self) -> dict[str, str]:
        """Return the scopes that are known, by name."""
        return {name: value for name in SCOPES if (value := getattr(self, name)) is not None}

    def contradictions(self, given: "Owner") -> tuple[str, ...]:
        """Return the names of the scopes that another owner gives and this one does not have.

        Args:
            given: the other owner. Its missing scopes contradict nothing.
        """
        return tuple(
            name
            for name in SCOPES
            if (value := getattr(given, name)) is not None and value != getattr(self, name)
        )


SCOPES: Final = tuple(field.name for field in fields(Owner))
"""The names of an owner's scopes."""
_KEPT: Final = 16_384
"""Size of the cache of checked owners: the same owners usually repeat."""


def new_owner(given: Owner | Mapping[str, str | None]) -> Owner | None:
    """Check an owner; return None for one without any scope.

    Raises:
        InvalidInput: it is neither an `Owner` nor a mapping, a key is not a scope, or a value is
            not text or is empty.
    """
    if type(given) is dict:
        try:
            return _owner_of(tuple(given.items()))
        except TypeError:  # a value is not hashable, so not text
            return _of_scopes(given)
    if isinstance(given, Owner):
        return _checked(given.user_id, given.agent_id, given.run_id, given.app_id)
    if not isinstance(given, Mapping):
        raise InvalidInput(f"owner must be an Owner or a mapping, not {type(given).__name__}")
    return _of_scopes(given)


@lru_cache(_KEPT)
def _owner_of(items: tuple[tuple[Any, Any], ...]) -> Owner | None:
    return _of_scopes(dict(items))


def _of_scopes(given: Mapping[str, Any]) -> Owner | None:
    for name in given:
        if name not in SCOPES:
            raise InvalidInput(f"{shown(name)} is not a scope of an owner; use {', '.join(SCOPES)}")
    get = given.get
    return _checked(get("user_id"), get("agent_id"), get("run_id"), get("app_id"))


GivenOwner = Owner | Mapping[str, str | None]
"""An owner as a caller gives it."""


def without_scope(owner: Owner | None, scope: str) -> Owner | None:
    """Return an owner without a scope; None for one that has no other."""
    if owner is None:
        return None
    return new_owner({name: v for name, v in owner.as_dict().items() if name != scope})


def owner_text(owner: Owner | None) -> str | None:
    """Return an owner as JSON text; None for None."""
    return None if owner is None else _text(owner)


@lru_cache(_KEPT)
def _text(owner: Owner) -> str:
    return json.dumps(owner.as_dict(), ensure_ascii=False, separators=(",", ":"))


@lru_cache(_KEPT)
def owner_from_text(text: str | None) -> Owner | None:
    """Return the owner of a stored JSON text; None for None, and for an object without a scope.

    Raises:
        StorageCorrupt: another program stored a text that is not an owner's.
    """
    if text is None:
        return None
    given = parse_json(text)
    try:
        return new_owner({name: given.get(name) for name in SCOPES})
    except (AttributeError, InvalidInput) as error:
        raise StorageCorrupt(f"an owner can't be read: {error}") from error


def _checked(*scopes: object) -> Owner | None:
    try:
        return _owner(*scopes)
    except TypeError:  # not hashable, so not text
        for name, value in zip(SCOPES, scopes, strict=True):
            if value is not None:
                check_name(name, value)
        raise


@lru_cache(_KEPT)
def _owner(*scopes: object) -> Owner | None:
    given = {
        name: check_name(name, value)
        for name, value in zip(SCOPES, scopes, strict=True)
        if value is not None
    }
    return Owner(**given) if given else None
