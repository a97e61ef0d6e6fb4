"""What do owners, contexts and causes cost on PostgreSQL, also in a large history?

    python -m benchmarks.owners_postgres [--quick] [--repeat 3] [--rows 3000000] [--url …]

As `benchmarks.owners`, on the dev extra's server with PostgreSQL's own defaults, or on the server
of `--url`. There is a checkpoint before each measurement. 3 million rows take 3 GB.
"""

import asyncio
from argparse import Namespace
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from async_history import HistoryManager, open_history
from benchmarks._measure import OthersLoad
from benchmarks._owners import measure, owners_parser, tell
from benchmarks._postgres_peers import connected, fresh_schema
from benchmarks._report import work_folder
from benchmarks.postgres import server_url


@asynccontextmanager
async def _empty(url: str) -> AsyncIterator[HistoryManager]:
    async with fresh_schema(url) as schema, open_history(url, schema=schema) as history:
        yield history


async def _checkpoint(url: str) -> None:
    async with connected(url) as connection:
        await connection.execute("CHECKPOINT")


def main(options: Namespace) -> None:
    """Measure, print, and write the results."""
    with work_folder(options.dir) as folder, server_url(options) as url:
        load = OthersLoad()
        checkpoint = partial(_checkpoint, url)
        bars = asyncio.run(measure(partial(_empty, url), options, settle=checkpoint))
        tell(options, folder, "owners_postgres", bars, load)


if __name__ == "__main__":
    parser = owners_parser(__doc__)
    parser.add_argument("--url", help="a PostgreSQL server to measure, instead of one of its own")
    main(parser.parse_args())
