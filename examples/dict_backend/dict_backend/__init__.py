"""A backend in plain dicts and lists: complete, and small enough to be read in one go.

Copy it to begin a backend of your own. A module is one part, as in `async_history`'s own backends;
the documentation's page "Writing a backend" says what each part must do.
"""

from dict_backend.backend import DictBackend
from dict_backend.data import Kept

__all__ = ["DictBackend", "Kept"]
