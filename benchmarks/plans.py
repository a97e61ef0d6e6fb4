"""What does PostgreSQL do for each query and look-up, in a small and in a large history?

    python -m benchmarks.plans [--quick] [--rows 3000000] [--nodes] [--url postgresql://…]

For a page of ten records of each query, and for each look-up of a batch's transaction, it counts
the buffers in a small and a large history: before the tables have statistics, with them, and after
two fifths of the records were removed but not vacuumed. It also shows the server's shortest time of
a few tries. `--nodes` also shows which indexes the plans use in the large history. The server is
the dev extra's, or that of `--url`.
"""

import asyncio
from argparse import Namespace
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final

from async_history import open_history
from benchmarks._postgres_peers import connected, fresh_schema
from benchmarks._report import options_parser, print_table, results_folder, work_folder, write_json
from benchmarks.postgres import server_url
from tests.support.postgres_plans import Explainer, fill, look_ups
from tests.support.questions import questions

_FEW_ROWS: Final = 10_000
_MANY_ROWS: Final = 3_000_000
_QUICK_ROWS: Final = 20_000
_EACH: Final = 1
_QUICK_EACH: Final = 19
_TRIES: Final = 3
_UNITS: Final = ("buffers", "ms")
_STATES: Final = {
    "without statistics": "",
    "analyzed": "ANALYZE {schema}.history",
    "two fifths removed": "DELETE FROM {schema}.history WHERE seq < {rows} * 0.4",
}


def _nodes(plan: Mapping[str, Any]) -> Iterator[str]:
    """Yield the nodes by which a plan finds rows of a table."""
    if "Relation Name" in plan:
        yield f"{plan['Node Type']} {plan.get('Index Name', '')}".strip()
    for part in plan.get("Plans", ()):
        yield from _nodes(part)


Measured = tuple[int, float]
"""Buffers and milliseconds."""


def _asked(rows: int, each: int) -> dict[str, Callable[[Explainer], Awaitable[int]]]:
    """Return what is asked of a history of so many rows; each returns the buffers."""
    pages = {
        f"a page of {question.name}": partial(Explainer.page, question=question)
        for question in list(questions(rows))[::each]
    }
    found = {
        name: partial(Explainer.look_up, look_up=look_up)
        for name, look_up in look_ups(rows).items()
    }
    return {**pages, **found}


async def measure(
    url: str, rows: int, each: int, *, shows_nodes: bool
) -> dict[str, dict[str, tuple[Measured, Measured]]]:
    """Return the costs in the small and the large history, by query, in each state of the table."""
    taken: dict[str, dict[str, tuple[Measured, Measured]]] = {state: {} for state in _STATES}
    nodes: dict[str, str] = {}
    async with (
        fresh_schema(url) as small,
        fresh_schema(url) as large,
        connected(url) as connection,
    ):
        schemas = {_FEW_ROWS: f'"{small}"', rows: f'"{large}"'}
        for count, schema in schemas.items():
            async with open_history(url, schema=schema.strip('"')) as history:
                await history.add_history("owned", None, "tea", "ADD", owner={"user_id": "ann"})
            await fill(connection, schema, count)
        for state, statement in _STATES.items():
            for count, schema in schemas.items():
                if statement:
                    await connection.execute(statement.format(schema=schema, rows=count))
            asked = {schema: _asked(count, each) for count, schema in schemas.items()}
            for name in _asked(rows, each):
                found: list[Measured] = []
                for schema in schemas.values():
                    explainer = Explainer(connection, schema)
                    times = []
                    for _ in range(_TRIES):
                        buffers = await asked[schema][name](explainer)
                        times.append(explainer.milliseconds)
                    found.append((buffers, min(times)))
                few, many = found
                taken[state][name] = (few, many)
                found_by = dict.fromkeys(n for p in explainer.plans for n in _nodes(p["Plan"]))
                nodes[name] = ", ".join(found_by)
    for state, by_question in taken.items():
        print(f"\n{state}")
        print_table(
            ["what", *(f"{count:,}: {unit}" for count in schemas for unit in _UNITS)],
            [
                [name, *(f"{value:.4g}" for each_size in sizes for value in each_size)]
                for name, sizes in by_question.items()
            ],
        )
    if shows_nodes:
        for name, indexes in nodes.items():
            print(f"{name}: {indexes}")
    return taken


def main(options: Namespace) -> None:
    """Count, print, and write the results."""
    rows = options.rows or (_QUICK_ROWS if options.quick else _MANY_ROWS)
    each = _QUICK_EACH if options.quick else _EACH
    with work_folder(options.dir, rows * 1_000) as folder, server_url(options) as url:
        taken = asyncio.run(measure(url, rows, each, shows_nodes=options.nodes))
        for state, by_question in taken.items():
            for place, unit in enumerate(_UNITS):
                beyond = {
                    name: many[place] - 2 * few[place] for name, (few, many) in by_question.items()
                }
                worst = max(beyond, key=beyond.__getitem__)
                few, many = by_question[worst]
                print(
                    f"{state}: the most beyond twice: {worst}: "
                    f"{few[place]:.4g} and {many[place]:.4g} {unit}"
                )
        write_json(results_folder(options, folder) / "plans.json", {"taken": taken})


if __name__ == "__main__":
    parser = options_parser(__doc__)
    parser.add_argument("--rows", type=int, help=f"rows there, {_MANY_ROWS:,} if not told")
    parser.add_argument("--nodes", action="store_true", help="show what plans go through")
    parser.add_argument("--url", help="a PostgreSQL server to measure instead")
    main(parser.parse_args())
