"""Which mem0 is here, and whether this package was made for it."""

from importlib.metadata import PackageNotFoundError, version
from typing import Final

_SUPPORTED: Final = "mem0ai 1.0 to 2.x"


def _major() -> int:
    try:
        major = int(version("mem0ai").partition(".")[0])
    except PackageNotFoundError as error:
        raise ImportError(f"async_history.mem0 needs {_SUPPORTED}: pip install mem0ai") from error
    if major not in (1, 2):
        raise ImportError(f"async_history.mem0 works with {_SUPPORTED}, not {version('mem0ai')}")
    return major


MAJOR: Final = _major()
"""mem0's major version: 1 decides each fact's event with its LLM, 2 only adds when it infers."""
