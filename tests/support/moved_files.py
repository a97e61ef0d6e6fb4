"""A file that is moved or replaced while it is open."""

import shutil
from pathlib import Path


def log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def move_away(path: Path) -> None:
    path.rename(path.with_name("archived.db"))


def replace_with_a_copy(path: Path) -> None:
    """Replace a file as editors and synchronisers do."""
    copy = path.with_name("copy")
    shutil.copyfile(path, copy)
    copy.replace(path)
