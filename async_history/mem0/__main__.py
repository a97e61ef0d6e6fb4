"""`python -m async_history.mem0 app.py`: run a program with mem0's classes replaced.

Unlike with `python -m cProfile`, the program runs in a new Python process: mem0 reads its settings
(`MEM0_DIR`) from the environment when it is imported, and the program may set them first.
"""

import sys
from typing import Final

from async_history._startup import become

_USAGE: Final = """\
usage: python -m async_history.mem0 [-m MODULE | FILE] ARGS...

Run a program with async_history's classes in place of mem0's: what builds mem0's Memory or
AsyncMemory builds ours, and history_db_path takes any URL. For other commands: async-history run.
"""


def main() -> None:
    """Replace this process with Python, with the same options and this module's arguments."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        stream = sys.stdout if arguments else sys.stderr
        stream.write(_USAGE)
        raise SystemExit(0 if arguments else 2)
    if sys.flags.ignore_environment:
        sys.stderr.write(
            "async_history.mem0: Python's options -E and -I hide it from the program\n"
        )
        raise SystemExit(2)
    become([sys.executable, *_python_options(len(arguments)), *arguments])


def _python_options(arguments: int) -> list[str]:
    """Return the options of this Python, without `-m async_history.mem0`."""
    *options, last = sys.orig_argv[1 : len(sys.orig_argv) - arguments]
    if not last.startswith("-"):
        last = options.pop()
    last = last.removesuffix("async_history.mem0").removesuffix("m")
    return [*options, last] if last not in ("", "-") else options


if __name__ == "__main__":
    main()
