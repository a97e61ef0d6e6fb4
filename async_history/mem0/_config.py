# mypy: disable-error-code=import-untyped
"""Options that are not valid in mem0's configuration."""

from collections.abc import Mapping
from typing import Final

from mem0.configs.base import MemoryConfig

from async_history._core.options import HistoryOptions
from async_history.errors import InvalidInput

_OPTIONS: Final = frozenset(
    (*HistoryOptions.__annotations__, "history", "turns_between_processes", "threads")
)


def check_config(config: object) -> None:
    """Refuse an option of the history in mem0's configuration, which would ignore it.

    Without its `keys`, a history would be written in clear. A value that is not a mapping is left
    to mem0, which refuses it.

    Raises:
        InvalidInput: naming the option.
    """
    for name in config if isinstance(config, Mapping) else ():
        if name in _OPTIONS and name not in MemoryConfig.model_fields:
            raise InvalidInput(
                f"{name!r} is an option of the history, not of mem0's configuration: give it to "
                f"from_config by keyword, as in from_config(config, {name}=…)"
            )
