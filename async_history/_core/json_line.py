"""JSON in one line, safe to print on a terminal."""

import json
import re
from collections.abc import Callable
from typing import Any, Final

TEXT_DIRECTION: Final = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
"""The characters that change a text's direction, by number."""
_CONTROLS: Final = re.compile(
    f"[\x7f-\x9f\u2028\u2029\ud800-\udfff{''.join(map(chr, TEXT_DIRECTION))}]"
)
"""What json does not escape: what controls a terminal or ends a line (`str.splitlines`), and lone
surrogates, which a file's name has for bytes that are not UTF-8."""


def json_line(value: object, default: Callable[[Any], object] | None = None) -> str:
    """Return a value as one line of JSON, with terminal control characters escaped.

    Args:
        default: converts a value that JSON cannot represent.
    """
    line = json.dumps(value, default=default, ensure_ascii=False)
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", line)
