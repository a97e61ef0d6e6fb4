"""Methods whose arguments are declared where their request is checked."""

import inspect
from typing import get_type_hints

import pytest

from async_history._core.requests import takes


def new_request(*, to: int, reason: str | None = None) -> str:
    if to < 0:
        raise ValueError("to")
    return f"{to} {reason}"


class Calls:
    @takes(new_request)
    def call(self, asked: str) -> list[str]:
        """Call."""
        return [asked]

    @takes(new_request)
    async def wait(self, asked: str) -> list[str]:
        """Wait."""
        return [asked]


@pytest.mark.parametrize("name", ["call", "wait"])
def test_a_method_has_the_signature_of_its_request(name: str) -> None:
    method = getattr(Calls, name)
    assert str(inspect.signature(method)) == (
        "(self, *, to: int, reason: str | None = None) -> list[str]"
    )
    assert get_type_hints(method) == {"to": int, "reason": str | None, "return": list[str]}
    assert (method.__name__, method.__doc__) == (name, f"{name.title()}.")
    assert inspect.iscoroutinefunction(method) == (name == "wait")


async def test_a_request_is_made_when_its_method_runs() -> None:
    assert Calls().call(to=1) == await Calls().wait(to=1) == ["1 None"]
    with pytest.raises(ValueError, match="to"):
        Calls().call(to=-1)
    refused = Calls().wait(to=-1)
    with pytest.raises(ValueError, match="to"):
        await refused
    with pytest.raises(TypeError):
        Calls().call(frm=1)  # type: ignore[call-arg]
