"""Random calls by Hypothesis on any backend and on a plain list, with equal results."""

import asyncio
from collections import defaultdict
from collections.abc import Coroutine
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from async_history import (
    Event,
    HistoryConflict,
    HistoryManager,
    HistoryRecord,
    IdConflict,
)
from async_history.testing.fixtures import Cases, NewStore, OpenStore
from async_history.testing.model import pruned

T = TypeVar("T")


def has_text(record: HistoryRecord) -> bool:
    return record.old_memory is not None or record.new_memory is not None


memory_ids = st.sampled_from(["m1", "m2", "ünï", "'quoted'", " "])
texts = st.none() | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20
)
events = st.sampled_from(list(Event))
scopes = st.sampled_from(["s1", "s2"])
names = st.none() | st.sampled_from(["user", "assistant"])
cutoffs = st.datetimes(timezones=st.just(UTC)) | st.just(datetime.max.replace(tzinfo=UTC))
new_records = st.fixed_dictionaries(
    {"memory_id": memory_ids, "old_memory": texts, "new_memory": texts, "event": events},
    optional={
        "actor_id": names,
        "role": names,
        "is_deleted": st.booleans(),
        "created_at": st.datetimes(timezones=st.timezones() | st.none()).map(
            lambda moment: moment.isoformat()
        ),
        "id": st.integers(0, 5).map("id-{}".format),
    },
)


class HistoryMachine(RuleBasedStateMachine):
    """The model: a list of records in order, and ten messages per scope."""

    def __init__(self, open_store: OpenStore, *, keeps_history: bool) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.open_store = open_store
        self.keeps_history = keeps_history
        self.history: HistoryManager | None = None
        self.records: list[HistoryRecord] = []
        self.messages: dict[str, list[str | None]] = defaultdict(list)

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(call)

    @property
    def store(self) -> HistoryManager:
        assert self.history is not None
        return self.history

    @initialize()
    def open(self) -> None:
        async def opened() -> HistoryManager:
            return await self.open_store()

        self.history = self.run(opened())

    def teardown(self) -> None:
        if self.history is not None:
            self.run(self.history.aclose())
        self.runner.close()

    @precondition(lambda self: self.store.backend.store_name is not None)
    @rule()
    def reopen(self) -> None:
        """A store with a name keeps its records when it is reopened."""
        self.run(self.store.aclose())
        self.open()

    def known_as(self, item: dict[str, Any]) -> dict[str, Any]:
        """A store that keeps no records cannot recognize an id."""
        return item if self.keeps_history else {k: v for k, v in item.items() if k != "id"}

    def expect(self, given: list[dict[str, Any]]) -> list[HistoryRecord] | None:
        """Return the records that the batch would add, or None if an id has other content."""
        there = {record.id: record for record in self.records}
        added: list[HistoryRecord] = []
        for item in given:
            known = there.get(item.get("id", ""))
            if known is None:
                record = HistoryRecord(item.get("id", ""), *[None] * 4)  # type: ignore[arg-type]
                for name in ("memory_id", "old_memory", "new_memory", "event", "actor_id", "role"):
                    object.__setattr__(record, name, item.get(name))
                deleted = item.get("is_deleted", item["event"] is Event.DELETE)
                object.__setattr__(record, "is_deleted", deleted)
                object.__setattr__(record, "created_at", item.get("created_at"))
                added.append(record)
                there[record.id or f"new {len(added)}"] = record
            elif any(
                getattr(known, name) != value
                for name, value in item.items()
                if value is not None or name in ("old_memory", "new_memory")
            ):
                return None
        return added

    def remember(self, returned: list[HistoryRecord], added: list[HistoryRecord]) -> None:
        """Compare returned records with the given ones, and add them to the model."""
        known = {record.id for record in self.records}
        new = [r for r in dict.fromkeys(returned) if r.id not in known] if known else returned
        new = list({record.id: record for record in new}.values())
        assert len(new) == len(added)
        for record, wanted in zip(new, added, strict=True):
            for name in ("memory_id", "old_memory", "new_memory", "event", "actor_id", "role"):
                assert getattr(record, name) == getattr(wanted, name)
            assert record.is_deleted == wanted.is_deleted
            assert wanted.created_at in (None, record.created_at)
        if self.keeps_history:
            self.records += new

    @rule(given=new_records)
    def add(self, given: dict[str, Any]) -> None:
        given = self.known_as(given)
        expected = self.expect([given])
        arguments = {"old_memory": None, "new_memory": None, **given}
        try:
            record = self.run(self.store.add_history(**arguments))
        except IdConflict:
            assert expected is None
        else:
            assert expected is not None
            self.remember([record], expected)

    @rule(given=st.lists(new_records, max_size=8))
    def add_batch(self, given: list[dict[str, Any]]) -> None:
        given = [self.known_as(item) for item in given]
        expected = self.expect(given)
        try:
            records = self.run(self.store.batch_add_history(given))
        except IdConflict:
            assert expected is None
        else:
            assert expected is not None
            self.remember(records, expected)

    @precondition(lambda self: self.keeps_history and self.records)
    @rule(data=st.data(), text=texts)
    def add_if_latest(self, data: st.DataObject, text: str | None) -> None:
        seen = data.draw(st.sampled_from(self.records))
        latest = [r for r in self.records if r.memory_id == seen.memory_id][-1]
        given = {"memory_id": seen.memory_id, "new_memory": text, "event": Event.UPDATE}
        try:
            add = self.store.add_history(old_memory=None, **given, if_latest=seen)  # type: ignore[arg-type]
            records = [self.run(add)]
        except HistoryConflict:
            assert seen is not latest
        else:
            assert seen is latest
            self.remember(records, self.expect([given]) or [])

    @rule(memory_id=memory_ids, text=texts)
    def update(self, memory_id: str, text: str | None) -> None:
        text = text or "nothing"
        latest = next((r for r in reversed(self.records) if r.memory_id == memory_id), None)
        record = self.run(self.store.update_history(memory_id, text))
        is_there = latest is not None and latest.event != Event.DELETE and not latest.is_deleted
        if latest is not None and is_there and latest.new_memory == text:
            assert record == latest
            return
        given: dict[str, Any] = {"memory_id": memory_id, "new_memory": text, "event": Event.ADD}
        if latest is not None and is_there:
            given |= {"event": Event.UPDATE, "old_memory": latest.new_memory}
        self.remember([record], self.expect([given]) or [])

    @rule(scope=scopes, contents=st.lists(texts, max_size=14))
    def save(self, scope: str, contents: list[str | None]) -> None:
        self.run(
            self.store.save_messages(
                [{"role": "user", "content": text} for text in contents], scope
            )
        )
        self.messages[scope] = (self.messages[scope] + contents)[-10:]

    @rule(cutoff=cutoffs, keep_last=st.integers(0, 3))
    def prune(self, cutoff: datetime, keep_last: int) -> None:
        left = pruned(self.records, cutoff, keep_last)
        for dry_run in (True, False):
            report = self.run(
                self.store.prune(older_than=cutoff, keep_last=keep_last, dry_run=dry_run)
            )
            assert report.records == len(self.records) - len(left)
        self.records = left

    @rule(memory_id=memory_ids, scope=scopes)
    def erase(self, memory_id: str, scope: str) -> None:
        told = [r for r in self.records if r.memory_id == memory_id and has_text(r)]
        report = self.run(
            self.store.erase(
                memory_ids=[memory_id], session_scopes=[scope], reason="asked", vacuum=False
            )
        )
        assert (report.records, report.messages) == (len(told), len(self.messages.pop(scope, [])))
        self.records = [
            replace(r, old_memory=None, new_memory=None) if r in told else r for r in self.records
        ]

    @rule()
    def erase_user(self) -> None:
        self.run(self.store.erase(actor_id="user", reason="asked", vacuum=False))
        own = [r for r in self.records if r.actor_id == "user"]
        told = {(r.memory_id, r.new_memory) for r in own}
        self.records = [
            replace(r, old_memory=None, new_memory=None, actor_id=None)
            if r in own
            else replace(
                r,
                old_memory=None if (r.memory_id, r.old_memory) in told else r.old_memory,
                new_memory=None if (r.memory_id, r.new_memory) in told else r.new_memory,
            )
            for r in self.records
        ]

    @rule()
    def reset(self) -> None:
        self.run(self.store.reset())
        self.records.clear()
        self.messages.clear()

    @rule(memory_id=memory_ids | st.just("unknown"))
    def read_memory(self, memory_id: str) -> None:
        read = self.run(self.store.get_history(memory_id))
        assert read == [r for r in self.records if r.memory_id == memory_id]

    @rule(
        wanted=st.fixed_dictionaries(
            {},
            optional={"memory_id": memory_ids, "event": events, "actor_id": st.just("user")},
        ),
        order=st.sampled_from(["oldest", "newest"]),
        page_size=st.integers(1, 4),
        pages=st.integers(0, 3),
        limit=st.none() | st.integers(0, 9),
    )
    def query(
        self, wanted: dict[str, Any], order: Any, page_size: int, pages: int, limit: int | None
    ) -> None:
        expected = [r for r in self.records if all(getattr(r, k) == v for k, v in wanted.items())]
        if order == "newest":
            expected.reverse()

        async def walk() -> list[HistoryRecord]:
            """Some pages of one query, then the rest from the last page's cursor."""
            found: list[HistoryRecord] = []
            cursor = None
            query = self.store.query_history(
                **wanted, order=order, page_size=page_size, limit=limit
            )
            walked = query.pages()
            for _ in range(pages):
                page = await anext(walked, None)
                if page is None:
                    break
                found += page.records
                cursor = page.cursor
            left = None if limit is None else limit - len(found)
            rest = self.store.query_history(**wanted, order=order, after=cursor, limit=left)
            return found + [record async for record in rest]

        assert self.run(walk()) == expected[:limit]

    @rule(scope=scopes, limit=st.integers(0, 12))
    def read_messages(self, scope: str, limit: int) -> None:
        kept = self.run(self.store.get_last_messages(scope, limit))
        expected = self.messages[scope]
        assert [m.content for m in kept] == expected[max(0, len(expected) - limit) :]


class RandomCallCases(Cases):
    """Random calls, with the same results as a list in memory.

    Attributes:
        keeps_history: False for a backend that stores no records.
        examples: the number of call sequences, each on a new store.
    """

    keeps_history = True
    examples = 80

    def test_random_calls_agree_with_a_list(self, new_store: NewStore) -> None:
        keeps_history = self.keeps_history

        class OnNewStore(HistoryMachine):
            def __init__(self) -> None:
                super().__init__(new_store(), keeps_history=keeps_history)

        run_state_machine_as_test(
            OnNewStore,
            settings=settings(
                max_examples=self.examples,
                stateful_step_count=30,
                deadline=None,
                suppress_health_check=[HealthCheck.too_slow],
            ),
        )
