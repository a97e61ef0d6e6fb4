"""A complete, small backend in plain dicts and lists.

Copy it to start your own backend. Each module is one part, as in the backends of `async_history`.
The documentation's page "Writing a backend" says what each part must do.
"""

from dict_backend.backend import DictBackend
from dict_backend.data import Kept

__all__ = ["DictBackend", "Kept"]
