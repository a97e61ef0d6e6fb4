"""Sphinx's settings. `sphinx-build -W -n docs site` builds the documentation."""

import ast
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))

import async_history.encryption  # noqa: E402 - names its classes as public
import async_history.ledger  # noqa: E402, F401 - the same
from async_history import __version__  # noqa: E402 - found by the line above

from docs.generate import write_pages  # noqa: E402

write_pages(DOCS)

project = "async_history"
version = release = __version__
html_title = f"async_history {release}"
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_show_copyright = False
html_theme_options: dict[str, Any] = {"top_of_page_buttons": []}
pygments_style = "default"
maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["deflist", "attrs_inline"]
myst_heading_anchors = 4

autodoc_default_options = {"member-order": "bysource"}
autodoc_typehints_format = "short"
autoclass_content = "class"
python_use_unqualified_type_names = True
napoleon_use_rtype = False
napoleon_use_ivar = True
default_role = "code"  # single backticks in docstrings

# Only names of this library must resolve: no inventory of others is fetched.
nitpick_ignore_regex = [("py:.*", r"(?!async_history).*")]


_AFTER_CODE = re.compile(r"(`[^`]+`)(?=\w)")
"""Code that letters follow, as in `HistoryRecord`s."""


def mark_up(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Mark the code of a docstring, in a line or as a paragraph, as reStructuredText asks for."""
    if lines and what in (
        "attribute",
        "property",
    ):  # napoleon takes what stands before a colon for its type
        lines[0] = lines[0].replace(": ", " \u2013 ")
    marked: list[str] = []
    for index, line in enumerate(lines):
        begins = (
            line.startswith("    ") and index > 0 and not lines[index - 1].strip()
        )
        if begins and not _in_block(lines[:index]):
            marked += ["::", ""]
        marked.append(_AFTER_CODE.sub(r"\1\\ ", line))
    lines[:] = marked


def _in_block(before: list[str]) -> bool:
    """Whether lines end within a section (`Args:`) or an indented block that has begun."""
    for line in reversed(before):
        if line.strip():
            return line.startswith(" ") or line.rstrip().endswith(":")
    return False


def find_comments() -> None:
    """Let autodoc find the comments of what is written elsewhere than its module says."""
    analyzer = import_module("sphinx.pycode").ModuleAnalyzer
    for name in ("", ".sqlite", ".postgres", ".sql", ".blocking", ".mem0"):
        public = analyzer.for_module(f"async_history{name}")
        public.analyze()
        tree = ast.parse(public.code)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and "._" in (node.module or ""):
                private = analyzer.for_module(str(node.module))
                private.analyze()
                public.attr_docs |= private.attr_docs
                public.tagorder |= private.tagorder


def setup(app: Any) -> None:
    find_comments()
    app.connect("autodoc-process-docstring", mark_up, priority=100)
