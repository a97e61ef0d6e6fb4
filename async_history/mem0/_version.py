"""The check that the installed mem0 is a supported version.

Differences within that range are detected by feature where they matter, not by version.
"""

from importlib.metadata import PackageNotFoundError, version
from typing import Final

_SUPPORTED: Final = "mem0ai 1.0 to 2.x"

try:
    _found = version("mem0ai")
except PackageNotFoundError as error:
    raise ImportError(f"async_history.mem0 needs {_SUPPORTED}: pip install mem0ai") from error
if _found.partition(".")[0] not in ("1", "2"):
    raise ImportError(f"async_history.mem0 works with {_SUPPORTED}, not {_found}")
