"""The ledger for code that does not await: `BlockingHistoryManager.ledger`."""

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from async_history._core.ledger.ledger import Ledger
from async_history._core.manager import HistoryManager

P = ParamSpec("P")
T = TypeVar("T")


class _Call(Protocol):
    def __call__(self, function: Callable[[HistoryManager], Awaitable[T]], /) -> T: ...


def _waiting(
    method: Callable[Concatenate[Ledger, P], Awaitable[T]],
) -> "Callable[Concatenate[BlockingLedger, P], T]":
    @wraps(method)
    def call(self: "BlockingLedger", /, *arguments: P.args, **options: P.kwargs) -> T:
        return self.call_with(lambda ledger: method(ledger, *arguments, **options))

    return call


class BlockingLedger:
    """The calls of `Ledger`, each of which blocks until it is done.

    Args:
        call: calls a function with the manager, and waits for its result.
    """

    def __init__(self, call: _Call) -> None:
        self._call = call

    def call_with(self, function: Callable[[Ledger], Awaitable[T]]) -> T:
        """Call a function with the ledger of the currently open manager."""
        return self._call(lambda manager: function(manager.ledger))

    checkpoint = _waiting(Ledger.checkpoint)
    verify = _waiting(Ledger.verify)
    prove = _waiting(Ledger.prove)
    prove_growth = _waiting(Ledger.prove_growth)
