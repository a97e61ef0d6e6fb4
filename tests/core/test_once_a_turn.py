"""A check whose result holds for one turn of the loop."""

import asyncio

import pytest

from async_history._core.concurrency.yielding import OnceATurn


async def test_it_runs_once_a_turn_and_on_every_call_while_it_fails() -> None:
    is_there = True
    checks = 0

    def check() -> None:
        nonlocal checks
        checks += 1
        if not is_there:
            raise FileNotFoundError

    once = OnceATurn(check)
    once()
    is_there = False
    once()
    assert checks == 1
    with pytest.raises(FileNotFoundError):
        await asyncio.to_thread(once)
    assert checks == 2
    await asyncio.sleep(0)
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            once()
    assert checks == 4
    is_there = True
    once()
    once()
    assert checks == 5


async def test_it_runs_again_if_the_end_of_the_turn_could_not_be_scheduled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checks: list[bool] = []
    once = OnceATurn(lambda: checks.append(True))

    def fail(*_: object) -> None:
        raise RecursionError

    with monkeypatch.context() as patch:
        patch.setattr(asyncio.get_running_loop(), "call_soon", fail)
        with pytest.raises(RecursionError):
            once()
    once()
    assert len(checks) == 2
