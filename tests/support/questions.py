"""Queries of a large history: every filter but a text's, at times and cursors."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import combinations, product
from typing import Any, Final, TypeVar

from async_history._core.reading.filters import Filter, Order, new_filter

T = TypeVar("T")

PAGE: Final = 10
FULL_PAGE: Final = 500
"""The default page size of a query."""
START: Final = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Question:
    """The arguments of a query, and the number of the record that it begins after."""

    name: str
    wanted: Filter
    after: int | None = None


def questions(rows: int) -> Iterator[Question]:
    """Yield every filter but a text's, in either order, at times and cursors."""
    lists: Mapping[str, Mapping[str, Any]] = {
        "a memory": {"memory_id": "m77"},
        "a large memory": {"memory_id": "large"},
        "ten memories": {"memory_id": ["large", *(f"m{n * 7}" for n in range(9))]},
        "an actor": {"actor_id": "a7"},
        "a rare actor": {"actor_id": "rare"},
        "an event": {"event": "UPDATE"},
        "a role": {"role": "user"},
        "no role": {"role": "tool"},
        "event and role": {"event": "DELETE", "role": "user"},
        "event and role that are not together": {"event": "ADD", "role": "user"},
        "actor and event": {"actor_id": "a7", "event": "DELETE"},
        "actor and event that are not together": {"actor_id": "a7", "event": "ADD"},
        "actor and role": {"actor_id": "a7", "role": "user"},
        "actor and role that are not together": {"actor_id": "a7", "role": "assistant"},
        "all three": {"actor_id": "a7", "role": "user", "event": "DELETE"},
        "a user": {"owner": (("user_id", "u7"),)},
        "a user and event": {"owner": (("user_id", "u7"),), "event": "UPDATE"},
        "a user's agent": {
            "owner": (
                ("user_id", "u7"),
                ("agent_id", "a3"),
            )
        },
        "a user of a memory": {"memory_id": "m77", "owner": (("user_id", "u7"),)},
        "an agent": {"owner": (("agent_id", "a0"),)},
        "a run": {"owner": (("run_id", "r77"),)},
        "an app": {"owner": (("app_id", "app"),)},
        "nobody": {"owner": (("user_id", "nobody"),)},
        "a request": {"cause": {"request_id": "7"}},
        "a request of a user": {"cause": {"request_id": "7"}, "owner": (("user_id", "u47"),)},
        "a request of nobody": {"cause": {"trace_id": "7"}},
    }
    middle = START + timedelta(seconds=rows / 2)
    hour, end = timedelta(hours=1), START + timedelta(seconds=rows)
    times: Mapping[str, Mapping[str, Any]] = {
        "since the beginning": {"since": START},
        "since the middle": {"since": middle},
        "since near the end": {"since": end - timedelta(seconds=50)},
        "since afterwards": {"since": end + hour},
        "until before": {"until": START - hour},
        "until near the beginning": {"until": START + timedelta(seconds=50)},
        "until the middle": {"until": middle},
        "until the end": {"until": end + hour},
        "ten seconds of the middle": {"since": middle, "until": middle + timedelta(seconds=10)},
        "an hour of next year": {"since": end + 1000 * hour, "until": end + 1001 * hour},
    }
    everything: Mapping[str, Any] = {}
    orders: Sequence[Order] = ("oldest", "newest")
    for of, wanted in {"everything": everything, **lists}.items():
        for when, span in {"": everything, **times}.items():
            for order in orders:
                name = ", ".join(filter(None, (of, when, f"{order} first")))
                filled: dict[str, Any] = dict.fromkeys(_FIELDS) | dict(wanted) | dict(span)
                asked = new_filter(**filled, order=order)
                yield Question(name, asked)
                if not span and of in _FROM_THE_MIDDLE:
                    yield Question(f"{name}, from the middle", asked, rows // 2)


def alike(rows: int, *, is_one: bool) -> Iterator[Question]:
    """Yield queries that all records of `fill_alike` match, from both ends and from the middle."""
    lists: Mapping[str, Mapping[str, Any]] = {
        "everything": {},
        "an event": {"event": "ADD"},
        "a role": {"role": "user"},
        "event and role": {"event": "ADD", "role": "user"},
        "an actor": {"actor_id": "agent"},
        "actor and event": {"actor_id": "agent", "event": "ADD"},
        "since the beginning": {"since": START},
        "until the end": {"until": START + timedelta(days=1000)},
        "an actor until the end": {"actor_id": "agent", "until": START + timedelta(days=1000)},
        **({"a memory": {"memory_id": "m"}} if is_one else {}),
    }
    orders: Sequence[Order] = ("oldest", "newest")
    for of, wanted in lists.items():
        for order in orders:
            filled: dict[str, Any] = dict.fromkeys(_FIELDS) | dict(wanted)
            asked = new_filter(**filled, order=order)
            yield Question(f"{of}, {order} first", asked)
            yield Question(f"{of}, {order} first, from the middle", asked, rows // 2)


def of_owners(rows: int) -> Iterator[Question]:
    """Yield every combination of an owner's scopes with a cause, actor, role and event.

    All are those of one record, so that some records of each list have all of them.
    """
    number = rows // 24 * 12 + 9
    scopes = (
        ("user_id", f"u{number % (rows // 100)}"),
        ("agent_id", f"a{number % 4}"),
        ("run_id", f"r{number // 10}"),
        ("app_id", "app"),
    )
    others: Mapping[str, Any] = {
        "cause": {"request_id": f"{number // 20}"},
        "actor_id": f"a{number % 20}",
        "role": "user",
        "event": "UPDATE",
    }
    orders: Sequence[Order] = ("oldest", "newest")
    for owner, names, order in product(subsets(scopes), subsets(others), orders):
        if not owner:
            continue
        told = ", ".join((*(scope for scope, _ in owner), *names, f"{order} first"))
        filled: dict[str, Any] = dict.fromkeys(_FIELDS) | {name: others[name] for name in names}
        yield Question(told, new_filter(**filled, owner=owner, order=order))


def scans(rows: int, scan: int) -> Iterator[Question]:
    """Yield each query for a text that no record has, through so many records from its cursor."""
    for question in questions(rows):
        is_newest = question.wanted.order == "newest"
        after = question.after or (rows if is_newest else 1)
        through = max(after - scan, 1) if is_newest else min(after + scan, rows)
        nowhere = replace(question.wanted, text="nowhere", through=through)
        yield Question(question.name, nowhere, after)


def subsets(values: Iterable[T]) -> Iterator[tuple[T, ...]]:
    """Yield every selection of values, the empty one first."""
    given = tuple(values)
    for size in range(len(given) + 1):
        yield from combinations(given, size)


_FIELDS: Final = ("memory_id", "actor_id", "role", "event", "text", "since", "until")
_FROM_THE_MIDDLE: Final = ("everything", "a large memory", "ten memories", "an actor", "an event")
