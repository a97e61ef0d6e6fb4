"""The examples of the README and of `docs/`, by the names on their fences."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).parents[2]
PAGES: Final = (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md")))
GENERATED: Final = ("command.md", "results.md")
_FENCE: Final = re.compile(r"(?ms)^```([^\n]*)\n(.*?)^```$")
_NAMED: Final = re.compile(r"(python|bash|sql) name=([a-z0-9-]+)")
_WITHOUT_NAME: Final = re.compile(r"text|\{[a-z-]+\}.*")


@dataclass(frozen=True, slots=True)
class Example:
    """One fence: its place, its language and its text."""

    page: Path
    language: str
    text: str


def _fences() -> Iterator[tuple[Path, str, str]]:
    for page in PAGES:
        if page.name not in GENERATED:
            for info, text in _FENCE.findall(page.read_text(encoding="utf-8")):
                yield page, info, text


def _examples() -> dict[str, Example]:
    found: dict[str, Example] = {}
    for page, info, text in _fences():
        if _WITHOUT_NAME.fullmatch(info):
            continue
        named = _NAMED.fullmatch(info)
        where = page.relative_to(REPOSITORY)
        assert named is not None, f"{where}: write ```language name=… and not ```{info}"
        language, name = named.groups()
        assert name not in found, f"{where}: another example is called {name}"
        found[name] = Example(page, language, text)
    return found


EXAMPLES: Final = _examples()


def example(name: str) -> str:
    """Return an example's text."""
    return EXAMPLES[name].text
