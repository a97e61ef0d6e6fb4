"""Owners, contexts and causes."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from async_history import (
    HistoryRecord,
    IdConflict,
    InvalidInput,
    JsonLines,
    Owner,
    OwnerConflict,
    copy_history,
    dump_lines,
    open_history,
    recording,
)
from async_history.backend import owners_to_give
from async_history.testing.changes import START
from async_history.testing.fixtures import Cases, OpenStore, found

ALICE = {"user_id": "alice"}


def details(record: HistoryRecord) -> tuple[Owner | None, object, object]:
    return record.owner, record.context, record.cause


class OwnerCases(Cases):
    """Owner, context and cause: recorded, read, copied, erased."""

    async def test_details_are_returned_as_given(self, open_store: OpenStore) -> None:
        owner = {"user_id": "alice", "run_id": "r'1", "agent_id": None}
        context = {"color": "bläu", "n": [1, 2.5, None, {"x": True}], "nul": "\0"}
        context["deep"] = json.loads("[" * 99 + "]" * 99)
        cause = {"request_id": 'q"1', "why": ""}
        async with open_store() as history:
            first = await history.add_history(
                "m", None, "a", "ADD", owner=owner, context=context, cause=cause
            )
            (second,) = await history.batch_add_history(
                [
                    {
                        "memory_id": "m",
                        "new_memory": "b",
                        "event": "UPDATE",
                        "context": {},
                        "owner": Owner(user_id="alice"),
                    }
                ]
            )
            third = await history.update_history("m", "c", cause={"reason": "asked"})
            whose = Owner(user_id="alice", run_id="r'1")
            expected = [
                (whose, context, cause),
                (whose, {}, None),
                (whose, None, {"reason": "asked"}),
            ]
            assert [details(record) for record in (first, second, third)] == expected
            read = await history.get_history("m")
            assert [details(record) for record in read] == expected
            assert read == [first, second, third]
            assert [details(record) for record in await found(history)] == expected
            assert [details(record) for record in await found(history, memory_id="m")] == expected
            follower = history.follow()
            followed = [await anext(follower) for _ in range(3)]
            assert [details(record) for record in followed] == expected
            state = await history.memory_at("m", 1)
            assert state is not None
            assert details(state) == expected[0]
            (now,) = [record async for record in history.memories_at(datetime.now(UTC))]
            assert details(now) == expected[2]
            for record in read:
                assert record.recorded_at is not None
                assert abs(record.recorded_at - datetime.now(UTC)) < timedelta(days=1)

    async def test_an_owner_applies_to_all_records_of_a_memory(self, open_store: OpenStore) -> None:
        """Also for earlier records, those of other calls, and each record of a batch."""
        async with open_store() as history:
            await history.add_history("m", None, "0", "ADD")
            await history.batch_add_history(
                [{"memory_id": "m", "new_memory": str(n), "event": "UPDATE"} for n in (1, 2)]
            )
            await history.add_history("other", None, "x", "ADD")
            assert await found(history, user_id="alice") == []
            await history.add_history("m", "2", "3", "UPDATE", owner=ALICE)
            latest = await history.add_history("m", "3", "4", "UPDATE")
            assert latest.owner == Owner(user_id="alice")
            latest = await history.add_history("m", "4", "5", "UPDATE", if_latest=latest)
            latest = await history.update_history("m", "6")
            assert latest.owner == Owner(user_id="alice")
            await asyncio.gather(
                *(history.add_history("m", None, str(n), "UPDATE") for n in range(7, 60))
            )
            read = await history.get_history("m")
            assert {record.owner for record in read} == {Owner(user_id="alice")}
            assert await found(history, user_id="alice") == read
            assert len(read) == 60
            assert await history.count_history(user_id="alice") == 60
            assert [r.owner for r in await found(history, memory_id="other")] == [None]
        async with open_store() as history:
            if history.backend.store_name is not None:
                assert (await history.add_history("m", "59", "60", "UPDATE")).owner == Owner(
                    user_id="alice"
                )

    async def test_another_owner_is_refused_by_name(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            given: dict[str, str | None] = {"user_id": "alice", "agent_id": "a"}
            await history.add_history("m", None, "x", "ADD", owner=given)
            others: tuple[tuple[dict[str, str | None], str], ...] = (
                ({"user_id": "bob"}, "user_id"),
                ({"user_id": "bob", "agent_id": "b"}, "user_id and agent_id"),
                ({"run_id": "r"}, "run_id"),
                ({**given, "app_id": "z"}, "app_id"),
            )
            for owner, named in others:
                with pytest.raises(OwnerConflict, match=named):
                    await history.add_history("m", "x", "y", "UPDATE", owner=owner)
                with pytest.raises(OwnerConflict, match=named):
                    await history.update_history("m", "y", owner=owner)
            same: tuple[dict[str, str | None], ...] = (
                given,
                {"agent_id": "a"},
                {},
                {"user_id": "alice", "run_id": None},
            )
            for owner in same:
                await history.add_history("m", "x", "x", "UPDATE", owner=owner)
            results = await asyncio.gather(
                *(
                    history.add_history(
                        "m" if n % 3 else f"new {n}",
                        None,
                        str(n),
                        "UPDATE",
                        owner={"user_id": "bob" if n % 2 else "alice"},
                    )
                    for n in range(30)
                ),
                return_exceptions=True,
            )
            refused = [isinstance(result, OwnerConflict) for result in results]
            assert refused == [bool(n % 3 and n % 2) for n in range(30)]
            with pytest.raises(OwnerConflict):
                await history.batch_add_history(
                    [
                        {"memory_id": "n", "event": "ADD", "owner": {"user_id": "alice"}},
                        {"memory_id": "n", "event": "UPDATE", "owner": {"user_id": "bob"}},
                    ]
                )
            assert await history.get_history("n") == []
            assert len(await history.get_history("m")) == 5 + 10

    async def test_owners_are_given_without_records(self, open_store: OpenStore) -> None:
        """To memories with records but no owner; also with records in the same batch."""
        async with open_store() as history:

            async def give(**owners: str) -> frozenset[str]:
                submission = owners_to_give(
                    {name: Owner(user_id=user) for name, user in owners.items()}
                )
                await history.store.writer.submit(submission)
                return submission.given

            assert await give(nobody="alice") == frozenset()
            await history.batch_add_history(
                [{"memory_id": f"m{n % 3}", "new_memory": str(n), "event": "ADD"} for n in range(9)]
            )
            assert await give(m0="alice", m1="bob", nobody="alice") == {"m0", "m1"}
            assert await give(m0="bob", m1="bob", m2="carol") == {"m1", "m2"}
            read = await found(history)
            owners = ["alice", "bob", "carol"]
            assert [record.owner for record in read] == [
                Owner(user_id=owners[n % 3]) for n in range(9)
            ]
            for number, owner in enumerate(owners):
                assert await found(history, user_id=owner) == read[number::3]
            assert await found(history, memory_id="nobody") == []
            first, given, later = await asyncio.gather(
                history.add_history("new", None, "x", "ADD"),
                give(m0="alice", new="dan"),
                history.add_history("new", "x", "y", "UPDATE"),
            )
            assert given >= {"m0"}
            assert await give(new="dan") == {"new"}
            assert await found(history, user_id="dan") == [first, later]
            again = await history.add_history("m2", None, "z", "UPDATE")
            assert again.owner == Owner(user_id="carol")
            with pytest.raises(OwnerConflict):
                await history.add_history("m2", None, "z", "UPDATE", owner=ALICE)
        async with open_store() as history:
            if history.backend.store_name is not None:
                assert len(await found(history, user_id="carol")) == 4

    async def test_a_part_of_a_program_has_a_cause(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            with recording(cause={"request_id": "1", "reason": "outer"}, owner=ALICE):
                with recording(cause={"reason": "inner"}):
                    inner = await history.add_history("m", None, "x", "ADD", cause={"step": "2"})
                outer = await asyncio.create_task(history.update_history("m", "y"))
            after = await history.update_history("m", "z")
            assert inner.cause == {"request_id": "1", "reason": "inner", "step": "2"}
            assert outer.cause == {"request_id": "1", "reason": "outer"}
            assert after.cause is None
            assert [r.cause for r in await history.get_history("m")] == [
                inner.cause,
                outer.cause,
                None,
            ]
            assert after.owner == Owner(user_id="alice")

    async def test_metadata_alone_can_change(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            first = await history.update_history("m", "x", context={"tag": 1})
            assert await history.update_history("m", "x", context={"tag": 1}) == first
            assert await history.update_history("m", "x") == first
            second = await history.update_history("m", "x", context={"tag": 2})
            assert (second.event, second.old_memory, second.context) == ("UPDATE", "x", {"tag": 2})
            await history.add_history("m", "x", None, "DELETE")
            restored = await history.restore("m", to=1)
            assert (restored.new_memory, restored.context) == ("x", {"tag": 1})
            assert (await history.restore("m", to=1)) == restored

    async def test_a_named_id_has_its_context(self, open_store: OpenStore) -> None:
        async with open_store() as history:

            async def add(**more: Any) -> HistoryRecord:
                return await history.add_history("m", None, "x", "ADD", id="1", **more)

            first = await add(context={"a": 1}, cause={"try": "1"}, owner=ALICE)
            assert await add(context={"a": 1}, cause={"try": "2"}) == first
            assert await add() == first
            with pytest.raises(IdConflict):
                await add(context={"a": 2})
            assert len(await history.get_history("m")) == 1

    async def test_a_reset_forgets_owners(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            await history.add_history("m", None, "x", "ADD", owner=ALICE, cause={"run_id": "1"})
            await history.reset()
            assert await found(history, user_id="alice") == []
            assert await found(history, cause={"run_id": "1"}) == []
            assert (await history.add_history("m", None, "x", "ADD")).owner is None
            again = await history.add_history("m", None, "x", "ADD", owner={"user_id": "bob"})
            assert again.owner == Owner(user_id="bob")
            assert len(await found(history, user_id="bob")) == 2

    async def test_pruning_removes_details(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            for memory, when in (("old", START), ("new", datetime.now(UTC))):
                for n in range(3):
                    await history.add_history(
                        memory,
                        None,
                        str(n),
                        "ADD",
                        created_at=when,
                        owner=ALICE,
                        cause={"request_id": str(n)},
                    )
            await history.prune(older_than=START + timedelta(days=1), keep_last=0)
            left = await history.get_history("new")
            assert await found(history, user_id="alice") == left
            assert await found(history, cause={"request_id": "1"}) == left[1:2]
            assert (await history.add_history("old", None, "x", "ADD")).owner is None
            bob = await history.add_history("old", None, "x", "ADD", owner={"user_id": "bob"})
            assert bob.owner == Owner(user_id="bob")
            assert len(await found(history, user_id="bob")) == 2

    async def test_erasing_removes_context_and_cause(self, open_store: OpenStore) -> None:
        given: dict[str, Any] = {"context": {"secret": 1}, "cause": {"request_id": "1"}}
        async with open_store() as history:
            await history.add_history("m", None, "x", "ADD", actor_id="a", owner=ALICE, **given)
            await history.add_history("m", "x", None, "UPDATE", actor_id="b", **given)
            await history.add_history("m", None, None, "UPDATE", actor_id="a", **given)
            await history.add_history("n", None, None, "ADD", **given)
            report = await history.erase(actor_id="a", reason="asked", vacuum=False)
            assert report.records == 3
            read = await history.get_history("m")
            assert [details(record)[1:] for record in read] == [
                (None, None),
                (given["context"], given["cause"]),
                (None, None),
            ]
            assert len(await found(history, cause={"request_id": "1"})) == 2
            await history.erase(memory_ids=["m", "n"], reason="asked", vacuum=False)
            everything = await found(history)
            assert [details(record)[1:] for record in everything] == [(None, None)] * 4
            assert await found(history, cause={"request_id": "1"}) == []
            assert {record.owner for record in everything[:3]} == {Owner(user_id="alice")}

    async def test_copies_have_all_details(self, open_store: OpenStore) -> None:
        async with open_store() as history, open_history("memory://") as copy:
            await history.add_history(
                "m", None, "x", "ADD", owner=ALICE, context={"a": "ü"}, cause={"run_id": "1"}
            )
            await history.add_history("m", "x", "y", "UPDATE")
            await history.add_history("n", None, "z", "ADD", context={})
            read = await found(history)
            await copy_history(history, copy)
            assert [(r, r.owner) for r in await found(copy)] == [(r, r.owner) for r in read]
            lines = [line async for line in dump_lines(history)]
            await copy.reset()
            await copy_history(JsonLines(lines), copy)
            assert [(r, r.owner) for r in await found(copy)] == [(r, r.owner) for r in read]
            assert await found(copy, user_id="alice") == read[:2]
            await history.reset()
            await copy_history(copy, history)
            assert [(r, r.owner) for r in await found(history)] == [(r, r.owner) for r in read]
            assert await found(history, cause={"run_id": "1"}) == read[:1]

    async def test_unusable_details_are_refused(self, open_store: OpenStore) -> None:
        refused: tuple[dict[str, Any], ...] = (
            {"owner": "alice"},
            {"owner": {"user": "alice"}},
            {"owner": {"user_id": ""}},
            {"owner": {"user_id": 7}},
            {"owner": {"user_id": ["alice"]}},
            {"owner": {"user_id": "a\0b"}},
            {"context": "text"},
            {"context": {1: "x"}},
            {"context": {"x": {1, 2}}},
            {"context": {"x": float("nan")}},
            {"context": {"x": "\ud800"}},
            {"context": {"x": json.loads("[" * 100 + "]" * 100)}},
            {"cause": ["x"]},
            {"cause": {"x": 1}},
            {"cause": {"": "x"}},
            {"cause": {"x": "y" * 2_000}},
            {"cause": {str(n): "x" for n in range(100)}},
        )
        async with open_store() as history:
            for given in refused:
                with pytest.raises(InvalidInput):
                    await history.add_history("m", None, "x", "ADD", **given)
                with pytest.raises(InvalidInput, match="record 0"):
                    await history.batch_add_history([{"memory_id": "m", "event": "ADD", **given}])
            for asked in ({"user_id": ""}, {"agent_id": 5}, {"cause": "x"}, {"cause": {"x": None}}):
                with pytest.raises(InvalidInput):
                    history.query_history(**asked)
            with pytest.raises(InvalidInput):
                history.memories()
            assert await history.get_history("m") == []
