"""Numbered .sql for each database, and the adoption of every older mem0 layout."""

from async_history.migrations.adoption import (
    AdoptionReport,
    adopt,
    as_is_view,
    check_version,
    is_prepared,
    prepare,
    rebuild,
)
from async_history.migrations.schema import VERSION, install_statements

__all__ = [
    "VERSION",
    "AdoptionReport",
    "adopt",
    "as_is_view",
    "check_version",
    "install_statements",
    "is_prepared",
    "prepare",
    "rebuild",
]
