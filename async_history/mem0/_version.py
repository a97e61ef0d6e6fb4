"""Whether this package was made for the mem0 that is here.

What differs within that range is asked of mem0 itself, where it matters: it changes in any release.
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
