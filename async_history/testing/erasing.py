"""Forgetting owners, and erasing single records."""

import asyncio
from typing import Any

import pytest
from hypothesis import strategies as st

from async_history import Erased, HistoryManager, HistoryRecord, InvalidInput, Owner
from async_history.backend import operation
from async_history.testing.erased import ANN, SAID, fact, heard, is_blank, say
from async_history.testing.examples import try_examples
from async_history.testing.fixtures import Cases, OpenStore, found

CHANGES = st.fixed_dictionaries(
    {
        "memory": st.integers(0, 3),
        "old_memory": st.sampled_from([None, "x"]),
        "new_memory": st.sampled_from([None, "x", "y"]),
        "context": st.sampled_from([None, {"n": 1}]),
        "cause": st.sampled_from([None, {"request_id": "q"}, {"reason": "r"}]),
        "owner": st.dictionaries(
            st.sampled_from(["user_id", "agent_id", "run_id", "app_id"]),
            st.sampled_from("ab"),
        ),
    }
)


class EraseOwnerCases(Cases):
    """`erase` of owners and of single records."""

    async def test_nothing_remains_of_an_erased_owner(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            both = {**ANN, "agent_id": "bot", "run_id": "r"}
            first = await history.add_history("m", None, "a", "ADD", owner=both, **SAID)
            await history.add_history("m", "a", "b", "UPDATE")
            await history.add_history("gone", None, "a", "ADD", owner=ANN, **SAID)
            await history.add_history("gone", "a", None, "DELETE", **SAID)
            await history.add_history("late", None, "a", "ADD")
            await history.add_history("late", "a", "b", "UPDATE", owner=ANN)
            for name, owner in (("bob's", {"user_id": "bob"}), ("bot's", {"agent_id": "ann"})):
                await history.add_history(name, None, "a", "ADD", owner=owner, **SAID)
            await history.add_history("nobody's", None, "a", "ADD", **SAID)
            others = [await history.get_history(m) for m in ("bob's", "bot's", "nobody's")]
            facts = [fact(record) for record in await found(history)]
            planned = await history.erase(user_id="ann", reason="asked", dry_run=True)
            assert (planned.done, planned.records) == (False, 6)
            assert await history.get_history("m") != []
            assert (await history.get_history("m"))[0] == first
            report = await history.erase(user_id="ann", reason="asked", vacuum=False)
            assert (report.done, report.records) == (True, 6)
            assert await found(history, user_id="ann") == []
            assert await history.count_history(user_id="ann") == 0
            assert [record async for record in history.memories(user_id="ann")] == []
            assert await found(history, cause={"request_id": "q"}) == [rs[0] for rs in others]
            everything = await found(history)
            assert [fact(record) for record in everything] == facts
            for name, left in (
                ("m", Owner(agent_id="bot", run_id="r")),
                ("gone", None),
                ("late", None),
            ):
                records = await history.get_history(name)
                assert len(records) == 2
                assert all(map(is_blank, records))
                assert {record.owner for record in records} == {left}
            assert await found(history, agent_id="bot") == await history.get_history("m")
            assert await history.count_history(agent_id="bot", run_id="r") == 2
            assert [await history.get_history(m) for m in ("bob's", "bot's", "nobody's")] == others
            assert [r[0].owner for r in others] == [
                Owner(user_id="bob"),
                Owner(agent_id="ann"),
                None,
            ]
            (erasure,) = await history.erasures()
            assert erasure.id == report.erasure_id
            assert set(erasure.memory_ids) == {"m", "gone", "late"}
            assert (erasure.records, erasure.finished_at is not None) == (6, True)
            assert "ann" not in repr(erasure)
            again = await history.erase(user_id="ann", reason="asked again", vacuum=False)
            assert again.matches_nothing
        async with open_store() as history:
            if history.backend.store_name is not None:
                assert await found(history, user_id="ann") == []
                records = await history.get_history("m")
                assert {record.owner for record in records} == {Owner(agent_id="bot", run_id="r")}

    async def test_each_scope_can_be_forgotten(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            scopes = ("user_id", "agent_id", "run_id", "app_id")
            owner = dict.fromkeys(scopes, "x")
            await history.add_history("m", None, "a", "ADD", owner=owner)
            for n, scope in enumerate(scopes):
                asked: dict[str, Any] = {scope: "x"}
                report = await history.erase(**asked, reason="x", vacuum=False)
                assert report.records == (n == 0)
                left = dict.fromkeys(scopes[n + 1 :], "x")
                (record,) = await history.get_history("m")
                assert record.owner == (Owner(**left) if left else None)
                for name in scopes:
                    asked = {name: "x"}
                    assert await history.count_history(**asked) == (name in left)

    async def test_messages_of_sessions_that_name_the_owner_are_erased(
        self, open_store: OpenStore
    ) -> None:
        hers = (
            "user_id=ann",
            "agent_id=bot&user_id=ann",
            "agent_id=bot&run_id=r&user_id=ann",
            "user_id=ann&x=y",
        )
        others = (
            "user_id=anna",
            "user_id=joann",
            "x_user_id=ann",
            "agent_id=ann",
            "agent_id=user_id%3Dann",
            "user_id=Ann",
            "ann",
        )
        odd = ("user_id=a%26b%3D%25", "run_id=r&user_id=a&b=%")
        async with open_store() as history:
            await say(history, *hers, *others, *odd, "named too")
            dry = await history.erase(
                user_id="ann", session_scopes=["named too", hers[0]], reason="x", dry_run=True
            )
            assert dry.messages == len(hers) + 1
            assert await heard(history, hers) == list(hers)
            report = await history.erase(
                user_id="ann", session_scopes=["named too", hers[0]], reason="x", vacuum=False
            )
            assert report.messages == len(hers) + 1
            assert await heard(history, (*hers, "named too")) == []
            assert await heard(history, others) == list(others)
            report = await history.erase(user_id="a&b=%", reason="x", vacuum=False)
            assert report.messages == 2
            assert await heard(history, odd) == []

    async def test_an_erased_owner_may_come_back(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            await history.add_history("m", None, "a", "ADD", owner=ANN)
            await history.erase(user_id="ann", reason="x", vacuum=False)
            again = await history.add_history("n", None, "a", "ADD", owner=ANN)
            assert again.owner == Owner(user_id="ann")
            await history.update_history("n", "b")
            with operation():
                await history.add_history("o", None, "a", "ADD", owner=ANN)
                await history.save_messages([{"role": "user", "content": "x"}], "user_id=ann")
            assert len(await found(history, user_id="ann")) == 3
            assert await heard(history, ["user_id=ann"]) == ["user_id=ann"]
            report = await history.erase(user_id="ann", reason="x", vacuum=False)
            assert (report.records, report.messages) == (3, 1)
            with pytest.raises(Erased):
                await history.update_history("n", "c")

    async def test_an_erasure_cancelled_anywhere_can_be_repeated(
        self, open_store: OpenStore
    ) -> None:
        async with open_store() as history:
            for steps in range(0, 40, 3):
                owner = {"user_id": f"u{steps}"}
                names = [f"{steps}.{n}" for n in range(5)]
                await history.batch_add_history(
                    [
                        {"memory_id": name, "event": "ADD", "new_memory": "x", "owner": owner}
                        for name in names
                    ]
                )
                await say(history, f"user_id=u{steps}")
                call = asyncio.create_task(
                    history.erase(**owner, reason="x", vacuum=False)  # type: ignore[arg-type]
                )
                for _ in range(steps):
                    await asyncio.sleep(0)
                call.cancel()
                await asyncio.wait([call])
                await history.erase(**owner, reason="x", vacuum=False)  # type: ignore[arg-type]
                for name in names:
                    (record,) = await history.get_history(name)
                    assert is_blank(record)
                    assert record.owner is None
                assert await heard(history, [f"user_id=u{steps}"]) == []
            assert await found(history, text="x") == []

    def test_random_owners_are_forgotten(self, open_store: OpenStore) -> None:
        """One by one, each against a list of all records."""
        try_examples(
            open_store,
            _example,
            25,
            changes=st.lists(CHANGES, max_size=12),
            scope=st.sampled_from(["user_id", "agent_id", "run_id", "app_id"]),
            value=st.sampled_from("ab"),
        )

    async def test_single_records_are_erased(self, open_store: OpenStore) -> None:
        """A record's text is also erased where it is repeated, and nothing else is."""
        async with open_store() as history:
            more: dict[str, Any] = {"actor_id": "eve", "role": "user", "owner": ANN, **SAID}
            await history.add_history("m", None, "a", "ADD", **more)
            secret = await history.add_history("m", "a", "secret", "UPDATE", **more)
            await history.add_history("m", "secret", "b", "UPDATE", **more)
            await history.add_history("m", "b", "secret", "UPDATE", **more)
            await history.add_history("n", None, "secret", "ADD", **more)
            wanted = [secret.id, "unknown"]
            dry = await history.erase(record_ids=wanted, reason="x", dry_run=True)
            assert dry.records == 3
            report = await history.erase(record_ids=iter(wanted), reason="x", vacuum=False)
            assert report.records == 3
            records = await history.get_history("m")
            assert [(r.old_memory, r.new_memory) for r in records] == [
                (None, "a"),
                (None, None),
                (None, "b"),
                ("b", None),
            ]
            assert [r.context is None for r in records] == [False, True, False, False]
            assert [r.cause is None for r in records] == [False, True, False, False]
            assert {(r.actor_id, r.owner) for r in records} == {("eve", Owner(user_id="ann"))}
            assert [r.new_memory for r in await history.get_history("n")] == ["secret"]
            assert (await history.update_history("m", "c")).new_memory == "c"
            again = await history.erase(record_ids=wanted, reason="x", vacuum=False)
            assert again.matches_nothing
            first, *_ = await history.get_history("m")
            both = await history.erase(record_ids=[*wanted, first.id], reason="x", vacuum=False)
            assert both.records == 1  # not those that were erased before

    async def test_single_records_of_a_long_memory_are_erased(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            records = await history.batch_add_history(
                [
                    {
                        "memory_id": "m",
                        "event": "UPDATE",
                        "old_memory": f"text {n % 9}",
                        "new_memory": f"text {(n + 1) % 9}",
                    }
                    for n in range(1_000)
                ]
            )
            wanted = [records[500].id, records[501].id]
            await history.erase(record_ids=wanted, reason="x", vacuum=False)
            gone = {records[500].new_memory, records[501].new_memory}
            kept = await history.get_history("m")
            for n, (before, after) in enumerate(zip(records, kept, strict=True)):
                for column in ("old_memory", "new_memory"):
                    was = getattr(before, column)
                    is_gone = was in gone or n in (500, 501)
                    assert getattr(after, column) == (None if is_gone else was)

    async def test_unusable_erasures_are_refused(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            await history.add_history("m", None, "a", "ADD", owner=ANN)
            refused: tuple[dict[str, Any], ...] = (
                {},
                {"user_id": "ann", "run_id": "r"},
                {"user_id": "ann", "memory_ids": ["m"]},
                {"user_id": "ann", "actor_id": "ann"},
                {"record_ids": ["x"], "memory_ids": ["m"]},
                {"record_ids": "x"},
                {"record_ids": [""]},
                {"user_id": ""},
                {"app_id": 7},
            )
            for given in refused:
                with pytest.raises(InvalidInput):
                    await history.erase(**given, reason="x")
            assert (await history.get_history("m"))[0].new_memory == "a"
            assert await history.erasures() == []


async def _example(
    history: HistoryManager,
    prefix: str,
    changes: list[dict[str, Any]],
    scope: str,
    value: str,
) -> None:
    """Make a history of four memories, some owned; forget one owner; compare."""
    asked: dict[str, Any] = {scope: prefix + value}
    names = [f"{prefix}{n}" for n in range(4)]
    owners: dict[str, Owner] = {}
    records: list[HistoryRecord] = []
    for one in changes:
        name = names[one["memory"]]
        owner = {kind: prefix + value for kind, value in one["owner"].items()}
        if name not in owners and owner:
            owners[name] = Owner(**owner)
        change = {**one, "memory_id": name, "event": "UPDATE"}
        del change["memory"]
        change["owner"] = owner if name in owners and owners[name] == Owner(**owner) else None
        records += await history.batch_add_history([change])
    forgotten = {name for name, owner in owners.items() if getattr(owner, scope) == asked[scope]}
    hers = [record for record in records if record.memory_id in forgotten]
    dry = await history.erase(**asked, reason="x", dry_run=True)
    report = await history.erase(**asked, reason="x", vacuum=False)
    assert dry.records == report.records == sum(not is_blank(record) for record in hers)
    assert await found(history, **asked) == []
    for name in names:
        before = [record for record in records if record.memory_id == name]
        after = await history.get_history(name)
        assert [fact(record) for record in after] == [fact(record) for record in before]
        left = owners[name].as_dict() if name in owners else {}
        if name in forgotten:
            assert all(map(is_blank, after))
            del left[scope]
        else:
            assert after == before
        assert {record.owner for record in after} <= {Owner(**left) if left else None}
        for other, text in left.items():
            assert name in {r.memory_id for r in await found(history, **{other: text})} or not after
