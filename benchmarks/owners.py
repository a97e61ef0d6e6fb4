"""What do owners, contexts and causes cost on SQLite, also in a large file?

    python -m benchmarks.owners [--quick] [--repeat 3] [--rows 3000000] [--dir FOLDER]

One task for each user records with and without them, in turns. Then a file with `--rows` records, a
hundred for each user, is filled in bulk and compared with one of 10,000: the times of a user's
queries, and the speed of inserting tasks. 3 million rows take 4 GB.
"""

import asyncio
from argparse import Namespace
from itertools import count

from async_history import open_history
from benchmarks._measure import OthersLoad
from benchmarks._owners import measure, owners_parser, tell
from benchmarks._report import work_folder


def main(options: Namespace) -> None:
    """Measure, print, and write the results."""
    with work_folder(options.dir) as folder:
        load, files = OthersLoad(), count()
        bars = asyncio.run(measure(lambda: open_history(folder / f"{next(files)}.db"), options))
        tell(options, folder, "owners", bars, load)


if __name__ == "__main__":
    main(owners_parser(__doc__).parse_args())
