"""What does PostgreSQL do for a page of each question, in a small and in a large history?

    python -m benchmarks.plans [--quick] [--rows 3000000] [--nodes] [--url postgresql://…]

Nothing is timed: for each question the buffers are counted that its page of ten records touches, of
10,000 records and of many, before the tables have statistics and with them. `--nodes` also shows
which indexes the plans of the many go through. The server is the dev extra's, or that of `--url`.
"""

import asyncio
from argparse import Namespace
from collections.abc import Iterator, Mapping
from typing import Any, Final

from async_history import open_history
from benchmarks._postgres_peers import connected, fresh_schema
from benchmarks._report import options_parser, print_table, results_folder, work_folder, write_json
from benchmarks.postgres import server_url
from tests.support.postgres_plans import Explainer, fill, questions

_FEW_ROWS: Final = 10_000
_MANY_ROWS: Final = 3_000_000
_QUICK_ROWS: Final = 20_000
_EACH: Final = 1
_QUICK_EACH: Final = 19


def _nodes(plan: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a plan goes through to find rows of a table."""
    if "Relation Name" in plan:
        yield f"{plan['Node Type']} {plan.get('Index Name', '')}".strip()
    for part in plan.get("Plans", ()):
        yield from _nodes(part)


async def measure(url: str, rows: int, each: int, *, shows_nodes: bool) -> dict[str, list[int]]:
    """Return the buffers by question: few and many without statistics, then with them."""
    touched: dict[str, list[int]] = {}
    nodes: dict[str, str] = {}
    async with (
        fresh_schema(url) as small,
        fresh_schema(url) as large,
        connected(url) as connection,
    ):
        schemas = {_FEW_ROWS: f'"{small}"', rows: f'"{large}"'}
        for count, schema in schemas.items():
            async with open_history(url, schema=schema.strip('"')):
                """It makes the tables."""
            await fill(connection, schema, count)
        for is_known in (False, True):
            for count, schema in schemas.items():
                if is_known:
                    await connection.execute(f"ANALYZE {schema}.history")
                explainer = Explainer(connection, schema)
                for question in list(questions(count))[::each]:
                    buffers = await explainer.page(question)
                    touched.setdefault(question.name, []).append(buffers)
                    found = dict.fromkeys(n for p in explainer.plans for n in _nodes(p["Plan"]))
                    nodes[question.name] = ", ".join(found)
    few, many = f"{_FEW_ROWS:,}", f"{rows:,}"
    headings = ["a page of", few, many, f"{few}, analyzed", f"{many}, analyzed"]
    print_table(headings, [[name, *map(str, counts)] for name, counts in touched.items()])
    if shows_nodes:
        for name, through in nodes.items():
            print(f"{name}: {through}")
    return touched


def main(options: Namespace) -> None:
    """Count, print, and write the results."""
    rows = options.rows or (_QUICK_ROWS if options.quick else _MANY_ROWS)
    each = _QUICK_EACH if options.quick else _EACH
    with work_folder(options.dir, rows * 1_000) as folder, server_url(options) as url:
        touched = asyncio.run(measure(url, rows, each, shows_nodes=options.nodes))
        worst = max(touched, key=lambda name: touched[name][1] - 2 * touched[name][0])
        few, many, *_ = touched[worst]
        print(f"The most beyond twice: {worst}: {few} and {many} buffers")
        write_json(results_folder(options, folder) / "plans.json", {"buffers": touched})


if __name__ == "__main__":
    parser = options_parser(__doc__)
    parser.add_argument("--rows", type=int, help=f"rows there, {_MANY_ROWS:,} if not told")
    parser.add_argument("--nodes", action="store_true", help="show what plans go through")
    parser.add_argument("--url", help="a PostgreSQL server to measure instead")
    main(parser.parse_args())
