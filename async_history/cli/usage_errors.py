"""The parser's errors without passwords: they quote arguments, which may be URLs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, cast

import typer
from typer.core import TyperGroup

from async_history._opening import without_secrets

# click's, or that of the copy of click in later versions of typer. BadParameter is one too.
_UsageError: Final = cast("type[typer.BadParameter]", typer.BadParameter.__base__)


class MaskedUsageErrors(TyperGroup):
    """The command's parser."""

    def make_context(self, *args: Any, **extra: Any) -> Any:
        """Parse the options before the subcommand."""
        with _masked():
            return super().make_context(*args, **extra)

    def invoke(self, *args: Any) -> Any:
        """Parse the subcommand's arguments, and run it."""
        with _masked():
            return super().invoke(*args)


@contextmanager
def _masked() -> Iterator[None]:
    try:
        yield
    except _UsageError as error:
        error.message = without_secrets(error.message)
        raise
