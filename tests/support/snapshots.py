"""Copies of a folder as a killed process would leave it, without killing one."""

import shutil
from pathlib import Path


class Snapshots:
    """Copies a folder at every so many calls of `take`.

    Meant as a callback for each SQL statement. Nothing changes a file between the statement and the
    copy, and a system keeps what a process wrote, so a copy is what SIGKILL would leave.
    """

    def __init__(self, folder: Path, into: Path, *, every: int = 1, skip: int = 0) -> None:
        self._folder = folder
        self._into = into
        self._every = every
        self._calls = -skip
        self.taken: list[Path] = []

    def take(self, *_: object) -> None:
        """Copy the folder if it is this call's turn."""
        if self._calls >= 0 and self._calls % self._every == 0:
            copy = self._into / f"snapshot {len(self.taken)}"
            shutil.copytree(self._folder, copy)
            self.taken.append(copy)
        self._calls += 1
