"""The history for measuring the page: 100 records of each user, and data for every view."""

from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

from async_history import HistoryManager
from benchmarks._records import NewRecord, agents, details

_A_USER: Final = 100
_BULK: Final = 9_000
_ALL_DELETED: Final = 3_000
"""The number of newest records that belong to deleted memories, so that a list finds none there."""

_SHOWN: Final = 13
"""Characters of a value in a request's name."""


class Request(NamedTuple):
    """A request to a page: its name in the table, its path, and its form if it is a POST."""

    name: str
    path: str
    form: dict[str, str] | None = None

    @property
    def is_scan(self) -> bool:
        """Whether it counts without a limit."""
        return "count_history" in self.name and "user_id" not in self.name


async def fill(history: HistoryManager, rows: int) -> None:
    """Write records of `rows` / 100 users in turns; every second memory is not deleted."""
    users = rows // _A_USER
    written = 0
    while written < rows:
        count = min(_BULK, rows - written)
        per_memory = agents(count // 3 or 1, count, 10**6 + written)
        batch = [
            one.as_mapping() | details((written // 3 + memory) % users, written + memory)
            for memory, records in enumerate(per_memory)
            for one in _kept(records, memory, rows - written)
        ]
        await history.batch_add_history(batch)
        written += len(batch)
    await history.erase(memory_ids=[batch[0]["memory_id"]], reason="asked for", vacuum=False)


def _kept(records: list[NewRecord], memory: int, left: int) -> list[NewRecord]:
    return records[:-1] if memory % 2 and left > _ALL_DELETED else records


async def requests(history: HistoryManager, rows: int) -> list[Request]:
    """Return a request for every view, call and preview, each for data that the history has."""
    user_id = f"user {rows // _A_USER // 2}"
    user = {"user_id": user_id}
    query = history.query_history(order="newest", limit=40, user_id=user_id)
    (page,) = [page async for page in query.pages()]
    one = next(record for record in page.records if record.event == "UPDATE")
    memory = {"memory_id": one.memory_id}
    cause: dict[str, Any] = dict(one.cause or {})
    by_cause = {"cause_key": "request_id", "cause_value": cause["request_id"]}
    actor = {"actor_id": str(one.actor_id)}
    now = datetime.now(UTC)
    lately, tomorrow = now - timedelta(seconds=1), now + timedelta(days=1)
    after = {"after": str(page.cursor)}
    begin = one.occurred_at or now
    pages_of: tuple[tuple[str, dict[str, Any]], ...] = (
        ("/", {}),
        ("/", user),
        ("/", after),
        ("/memory", memory),
        ("/diff", {**memory, "start": 1, "end": 2}),
        ("/text", {**memory, "record_id": one.id, "which": "new_memory"}),
        ("/at", {}),
        ("/at", {"place": 500}),
        ("/at", {**user, "place": 500}),
        ("/search", {}),
        ("/search", user),
        ("/search", actor),
        ("/search", by_cause),
        ("/search", {"since": lately.isoformat()}),
        ("/search", {"since": begin.isoformat(), "until": begin.isoformat()}),
        ("/search", {"event": "UPDATE"}),
        ("/search", {"event": "DELETE"}),
        ("/search", {"text": "Fujian"}),
        ("/search", {"text": "in no record"}),
        ("/live", {}),
        ("/live", user),
        ("/stats", {}),
        ("/stats", user),
        ("/operations", {}),
        ("/change", {}),
        ("/api/query_history", {}),
        ("/api/query_history", user),
        ("/api/query_history", actor),
        ("/api/count_history", {}),
        ("/api/count_history", user),
        ("/api/count_history", actor),
        ("/api/count_history", {"event": "UPDATE"}),
        ("/api/count_history", {"since": begin.isoformat()}),
        ("/api/get_history", memory),
        ("/api/memories", {}),
        ("/api/memories", user),
        ("/api/memories_at", {"when": tomorrow.isoformat()}),
        ("/api/memory_at", {**memory, "when": 1}),
        ("/api/diff", {**memory, "start": 1, "end": 2}),
        ("/api/stats", {}),
        ("/api/operations", {}),
        ("/api/end_cursor", {}),
        ("/api/openapi.json", {}),
        (f"/memories/{one.memory_id}/history", {}),
    )
    changes: tuple[tuple[str, dict[str, str]], ...] = (
        ("/restore", {**memory, "version": "1"}),
        ("/rollback", {**memory, "to": begin.isoformat()}),
        ("/rollback", {**user, "to": begin.isoformat()}),
        ("/rollback", {"to": tomorrow.isoformat()}),
        ("/rollback", {"to": lately.isoformat()}),
        ("/undo", by_cause),
        ("/erase", {**memory, "reason": "asked for"}),
        ("/erase", {**user, "reason": "asked for"}),
        ("/erase", {"record_ids": one.id, "reason": "asked for"}),
        ("/erase", {**actor, "reason": "asked for"}),
    )
    return [
        *(Request(_name(path, asked), _path(path, asked)) for path, asked in pages_of),
        *(Request(f"POST {_name(path, form)}", path, form) for path, form in changes),
    ]


def _name(path: str, asked: dict[str, Any]) -> str:
    shown = "/memories/…/history" if path.startswith("/memories/") else path
    values = [f"{name}={str(value)[:_SHOWN]}" for name, value in asked.items()]
    return shown + ("?" + "&".join(values) if asked else "")


def _path(path: str, asked: dict[str, Any]) -> str:
    return path + ("?" + urlencode(asked) if asked else "")
