"""The owners that a session scope of mem0's names."""

from itertools import product

import pytest
from mem0.memory.main import _build_session_scope

from async_history._core.writing.erased_names import names_of_session, session_names

pytestmark = pytest.mark.once

IDS = ("al", "a&user_id=al", "al&run_id=al", "al&x", "a=l", "%26", "a&agent_id=al&user_id=al", None)


def unescaped(**ids: str | None) -> str:
    """Return the scope as mem0 before 2.2 makes it."""
    return "&".join(f"{name}={value}" for name, value in sorted(ids.items()) if value)


@pytest.mark.parametrize("make", [unescaped, lambda **ids: _build_session_scope(ids)])
def test_every_owner_is_found(make: object) -> None:
    for user, agent, run in product(IDS, repeat=3):
        ids = {"user_id": user, "agent_id": agent, "run_id": run}
        scope = make(**ids)  # type: ignore[operator]
        for kind, value in ids.items():
            if value is not None:
                assert session_names(scope, (kind, value))
                assert (kind, value) in names_of_session(scope)


def test_an_id_that_looks_like_a_scope_is_not_an_owner() -> None:
    for user, other in (("a&user_id=al", "al"), ("al&x", "al"), ("al", "a"), ("a=l", "a")):
        for scope in (unescaped(user_id=user), _build_session_scope({"user_id": user})):
            assert not session_names(scope, ("user_id", other))
            assert ("user_id", other) not in names_of_session(scope)
    for scope in ("", "user_id", "x_user_id=al", "tenant=1", "&", "="):
        assert not session_names(scope, ("user_id", "al"))
    assert session_names("tenant=1&user_id=al", ("user_id", "al"))
    assert session_names("user_id=al&thread=5", ("user_id", "al"))


def test_a_scope_of_very_many_parts() -> None:
    scope = "agent_id=x" + "&run_id=y" * 100_000 + "&user_id=al"
    assert session_names(scope, ("user_id", "al"))
    assert len(names_of_session(scope)) <= 17 * 17
