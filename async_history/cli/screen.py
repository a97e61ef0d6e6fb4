"""Output on stdout: on a terminal with colours and wrapped between words."""

import math
import os
import shutil
import sys
from collections.abc import Sequence
from typing import Final

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

_LEAST_WIDTH: Final = 20

Piece = tuple[str, str]
"""A part of a line and its style, "" for none. Control characters are already escaped."""


class _Stdout(Console):
    """A console that leaves a closed pipe to `one_line_errors`."""

    def on_broken_pipe(self) -> None:
        """Raise the error again; rich would end the program."""
        raise BrokenPipeError


class Screen:
    """Stdout, line by line.

    A line that needs no colours and fits is written directly: layout by rich took most of the time
    of a query.
    """

    def __init__(self) -> None:
        self._console = _Stdout(highlight=False, markup=False, emoji=False)
        self._width = math.inf
        if not self._console.width:  # COLUMNS=0, as where a container has no terminal
            self._console.width = shutil.get_terminal_size().columns
        if self._console.is_terminal or os.environ.get("COLUMNS") not in (None, "", "0"):
            self._width = self._console.width
        self._is_plain = self._console.color_system is None
        self.has_colours = not self._is_plain and not self._console.no_color

    def line(
        self, *pieces: Piece, indent: str = "", indent_style: str = "", may_break: bool = True
    ) -> None:
        """Print a line, wrapped between words on a narrow terminal, with a hanging indent."""
        width = self._width if may_break else math.inf
        if self._console.is_terminal and may_break:
            width = self._console.width  # as it is now
        plain = "".join([text for text, _ in pieces])
        fits = width == math.inf or cell_len(plain) + len(indent) <= width
        if self._is_plain and fits:
            sys.stdout.write(f"{indent}{plain}\n")
            sys.stdout.flush()
            return
        text = Text.assemble(*pieces)
        lines: Sequence[Text] = [text]
        if not fits:
            columns = max(int(width) - len(indent), _LEAST_WIDTH)
            lines = list(text.wrap(self._console, columns, overflow="fold"))
        for number, part in enumerate(lines):
            head = Text(indent, style=indent_style) if number == 0 else Text(" " * len(indent))
            self._console.print(Text.assemble(head, part), soft_wrap=True)
