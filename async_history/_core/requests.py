"""Methods that take the arguments of a request's constructor, so that these are declared once."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")


def takes(
    new_request: Callable[P, R],
) -> Callable[[Callable[[S, R], T]], Callable[Concatenate[S, P], T]]:
    """Let a method that takes a request accept the arguments of the function that makes it.

    Its runtime signature, `help` and type checkers show these arguments. A coroutine function stays
    one: a refused request raises when the call is awaited.
    """

    def decorate(method: Callable[[S, R], T]) -> Callable[Concatenate[S, P], T]:
        @functools.wraps(method)
        def called(self: S, /, *arguments: P.args, **options: P.kwargs) -> T:
            return method(self, new_request(*arguments, **options))

        @functools.wraps(method)
        async def awaited(self: S, /, *arguments: P.args, **options: P.kwargs) -> Any:
            return await cast(Any, method)(self, new_request(*arguments, **options))

        made: Any = awaited if inspect.iscoroutinefunction(method) else called
        own, asked = inspect.signature(method), inspect.signature(new_request)
        made.__signature__ = own.replace(
            parameters=[next(iter(own.parameters.values())), *asked.parameters.values()]
        )
        made.__annotations__ = {
            **{name: each.annotation for name, each in asked.parameters.items()},
            "return": own.return_annotation,
        }
        return cast("Callable[Concatenate[S, P], T]", made)

    return decorate
