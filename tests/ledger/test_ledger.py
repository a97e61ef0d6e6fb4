"""The ledger of a store: its leaves, proofs and checkpoints."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from async_history import InvalidInput, NotProven, copy_history, open_history
from async_history._core.ledger.leaves import commitment_of, record_values
from async_history._core.ledger.removals import Removals
from async_history._core.ledger.seen import WholeBundle, seen_bundles
from async_history._core.ledger.stored import Counts
from async_history._core.records.records import fields_in_order
from async_history.blocking import BlockingHistoryManager
from async_history.ledger import (
    Checkpoint,
    GrowthProof,
    LedgerKey,
    LedgerReport,
    RecordProof,
    verify_proof,
)
from tests.conftest import OpenStore, new_stores, stores, url_of
from tests.ledger.ledgers import KEY, OWNER, change, fill, leaves_of, naive_root

pytestmark = pytest.mark.once


@pytest.fixture(
    params=stores("file", "memory", "postgres", "mariadb", "sqlalchemy", "sqlalchemy postgres")
)
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> OpenStore:
    store = new_stores(request.param, request, tmp_path)()
    return lambda **options: store(ledger=True, **options)


def counts(report: LedgerReport) -> tuple[int, ...]:
    return report.records, report.erased, report.pruned, report.reset


class TestLeaves:
    async def test_every_record_and_owner_has_a_leaf(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            await fill(history)
            before = await history.ledger.checkpoint(KEY)
            report = await history.ledger.verify(before)
            assert report.is_intact
            assert not report.unattested
            assert report.records == await history.count_history()
            assert report.owners == 1
            assert before.size == report.records + report.owners
            # The checkpoint and the start of the verification are in the log.
            assert (report.operations, report.unattested_operations) == (2, 0)
            assert report.size == before.size + 3

    async def test_the_tree_can_be_computed_from_the_commitments(
        self, open_store: OpenStore
    ) -> None:
        """Computed only as the documentation describes it."""
        async with open_store() as history:
            await fill(history)
            checkpoint = await history.ledger.checkpoint(KEY)
            leaves = await leaves_of(history, checkpoint.size)
            records = {one.id: one async for one in history.query_history()}
            for leaf in leaves.values():
                if leaf.kind == "record":
                    values = record_values(fields_in_order(records[leaf.name or ""]))
                    texts = [json.dumps(v, ensure_ascii=False) for v in ["record", *values]]
                    assert len(leaf.kept) == 16
                    assert commitment_of("record", leaf.kept, values) == leaf.commitment
                    assert sha256(leaf.kept + "\n".join(texts).encode()).digest() == leaf.commitment
            assert naive_root([leaf.commitment for leaf in leaves.values()]) == checkpoint.root
            assert len({leaf.kept for leaf in leaves.values()}) == len(leaves)

    async def test_an_owner_given_later_has_its_own_leaf(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            await history.add_history("m", None, "likes tea", "ADD")
            checkpoint = await history.ledger.checkpoint(KEY)
            await history.add_history("m", "likes tea", "likes milk", "UPDATE", owner=OWNER)
            await history.add_history("m", "likes milk", "likes ale", "UPDATE")
            report = await history.ledger.verify(checkpoint)
            assert report.is_intact
            assert (report.records, report.owners, report.unattested_owners) == (3, 1, 0)

    async def test_records_of_many_tasks_have_leaves_though_some_are_cancelled(
        self, open_store: OpenStore
    ) -> None:
        """Leaves of records that wait are computed ahead, and some of these are never written."""

        async def agent(name: int) -> None:
            for number in range(4):
                await history.add_history(f"{name}", None, f"likes {number}", "ADD")
                acked.append(name)
                if len(acked) == 500:
                    for one in agents[1::7]:
                        one.cancel()

        acked: list[int] = []
        async with open_store() as history:
            agents = [asyncio.create_task(agent(name)) for name in range(400)]
            await asyncio.wait(agents)
            written = await history.count_history()
            report = await history.ledger.verify(await history.ledger.checkpoint(KEY))
            assert report.is_intact
            assert 1_200 < len(acked) <= report.records == written < 1_600

    async def test_batches_of_one_record_are_read_together(self, open_store: OpenStore) -> None:
        """Verifying them takes few statements, although each has its own row of leaves."""
        asked: list[tuple[Any, ...]] = []

        async def read(tables: Any) -> int:
            run = tables._run

            def noted(*given: Any) -> Any:
                asked.append(given)
                return run(*given)

            tables._run = noted
            bundles = seen_bundles(
                await tables.bundles(0), Removals(), Counts(0, 0, 0, 0, 0), tables
            )
            async with aclosing(bundles) as pages:
                return len([page async for _, page in pages if isinstance(page, WholeBundle)])

        async with open_store() as history:
            for number in range(40):
                await history.add_history(f"m{number}", None, "likes tea", "ADD", owner=OWNER)
            await history.ledger.checkpoint(KEY)
            store: Any = history.store
            assert await store.ledger.read(read) == 80
        assert len(asked) == 3

    async def test_what_is_removed_is_accounted_for(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            await fill(history)
            kept = [await history.ledger.checkpoint(KEY)]
            total = await history.count_history()
            erased = await history.erase(user_id="ann", reason="asked")
            assert erased.records
            kept.append(await history.ledger.checkpoint(KEY))
            report = await history.ledger.verify(*kept)
            assert report.is_intact
            assert not report.unattested
            # The rest of an erased record has its own leaf.
            assert counts(report) == (total, erased.records, 0, 0)
            pruned = await history.prune(older_than=datetime.now(UTC) + timedelta(days=1))
            report = await history.ledger.verify(*kept)
            assert report.is_intact
            left = total - pruned.records
            assert counts(report) == (left, erased.records, pruned.records, 0)
            await history.reset()
            report = await history.ledger.verify(*kept)
            assert report.is_intact
            assert counts(report) == (0, erased.records, pruned.records, left)
            await history.add_history("new", None, "likes tea", "ADD")
            report = await history.ledger.verify(*kept, await history.ledger.checkpoint(KEY))
            assert report.is_intact
            assert report.records == 1

    async def test_copied_records_have_leaves(self, open_store: OpenStore, tmp_path: Path) -> None:
        source = tmp_path / "source.db"
        async with open_history(source) as history:
            await fill(history)
        async with open_history(source) as old, open_store() as history:
            await copy_history(old, history)
            report = await history.ledger.verify(await history.ledger.checkpoint(KEY))
            assert report.is_intact
            assert not report.unattested
            assert report.records == await history.count_history()

    async def test_records_from_before_the_ledger_have_no_leaf(self, tmp_path: Path) -> None:
        path = tmp_path / "history.db"
        async with open_history(path) as history:
            await history.add_history("m", None, "likes tea", "ADD", id="before", owner=OWNER)
            with pytest.raises(InvalidInput, match="ledger=True"):
                _ = history.ledger
        async with open_history(path, ledger=True) as history:
            await history.add_history("m", "likes tea", "likes milk", "UPDATE")
            report = await history.ledger.verify()
            assert report.unattested == ("before",)
            assert (report.records, report.unattested_owners) == (1, 1)
        async with open_history(path) as history:  # the ledger stays turned on
            await history.add_history("m", "likes milk", "likes ale", "UPDATE")
            assert (await history.ledger.verify()).records == 2

    @pytest.mark.parametrize("store", stores("file", "postgres", "mariadb"))
    async def test_a_manager_from_before_the_ledger_writes_no_leaf(
        self, store: str, request: pytest.FixtureRequest, tmp_path: Path
    ) -> None:
        """Until it opens the history again. Then it does, even if it asks for no ledger."""
        opened = new_stores(store, request, tmp_path)()
        async with opened() as early:
            await early.add_history("m", None, "a", "ADD", id="a")
            async with opened(ledger=True) as history:
                await history.add_history("m", "a", "b", "UPDATE", id="b")
                await early.add_history("m", "b", "c", "UPDATE", id="c")
                async with opened() as again:
                    await again.add_history("m", "c", "d", "UPDATE", id="d")
                report = await history.ledger.verify()
        assert report.is_intact
        assert (set(report.unattested), report.records) == ({"a", "c"}, 2)

    async def test_a_backup_has_its_files_ledger(self, tmp_path: Path) -> None:
        copy = tmp_path / "copy.db"
        async with open_history(tmp_path / "history.db", ledger=True) as history:
            await fill(history)
            checkpoint = await history.ledger.checkpoint(KEY)
            total = await history.count_history()
            await history.backup(copy)
            await history.add_history("later", None, "likes milk", "ADD")
            later = await history.ledger.checkpoint(KEY)
        async with open_history(copy) as history:
            report = await history.ledger.verify(checkpoint)
            assert report.is_intact
            assert (report.records, report.unattested) == (total, ())
            (fault,) = (await history.ledger.verify(checkpoint, later)).faults
            assert fault.kind in ("cut", "rewritten")

    async def test_stores_without_ledgers_refuse_one(self) -> None:
        with pytest.raises(InvalidInput, match="no option 'ledger'"):
            open_history("null://", ledger=True)
        async with open_history("null://") as history:
            with pytest.raises(InvalidInput, match="no ledger"):
                _ = history.ledger


class TestProofs:
    async def test_a_proof_is_checked_without_a_store(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            await fill(history)
            records = [record async for record in history.query_history(limit=60)]
            old = await history.ledger.checkpoint(KEY)
            await fill(history, 7)
            new = await history.ledger.checkpoint(KEY)
            for checkpoint in (old, new):
                for record in records[::17]:
                    text = str(await history.ledger.prove(record.id, checkpoint))
                    proof = verify_proof(text, KEY.verifier)
                    assert isinstance(proof, RecordProof)
                    assert proof.record is not None
                    assert proof.record["new_memory"] == record.new_memory
            growth = verify_proof(str(await history.ledger.prove_growth(old, new)), KEY.verifier)
            assert isinstance(growth, GrowthProof)
            with pytest.raises(NotProven, match="not signed"):
                verify_proof(text, LedgerKey.generate(KEY.name).verifier)

    async def test_a_proof_with_a_changed_value_does_not_hold(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            await fill(history)
            checkpoint = await history.ledger.checkpoint(KEY)
            proof = json.loads(str(await history.ledger.prove("given", checkpoint)))
            changes: list[dict[str, Any]] = [
                {**proof, "place": proof["place"] + 1},
                {**proof, "path": proof["path"][:-1]},
                {**proof, "kind": "rest"},
                {**proof, "commitment": proof["salt"]},
                {**proof, "salt": proof["path"][0]},
                {**proof, "checkpoint": proof["checkpoint"].replace("\n", "\n1", 1)},
                *({**proof, "record": {**proof["record"], name: "-"}} for name in proof["record"]),
                {},
                {**proof, "proof": "other"},
                {**proof, "path": 3},
                {**proof, "record": {**proof["record"], "role": "\ud800"}},
                {**proof, "record": None},
                {**proof, "salt": None},
                {**proof, "record": None, "salt": None, "kind": "owner"},
            ]
            text = json.dumps(proof)
            verify_proof(text, KEY.verifier)
            twice = text.replace('"new_memory"', '"new_memory": "x", "new_memory"')
            with pytest.raises(InvalidInput):
                verify_proof(twice, KEY.verifier)
            with pytest.raises(InvalidInput):
                verify_proof("[" * 100_000, KEY.verifier)
            for changed in changes:
                with pytest.raises((NotProven, InvalidInput)):
                    verify_proof(json.dumps(changed), KEY.verifier)

    async def test_a_proof_of_an_erased_record_says_that_it_existed(
        self, open_store: OpenStore
    ) -> None:
        async with open_store() as history:
            record = await history.add_history("m", None, "likes tea", "ADD")
            old = await history.ledger.checkpoint(KEY)
            await history.erase(memory_ids=["m"], reason="asked")
            proof = verify_proof(str(await history.ledger.prove(record.id, old)), KEY.verifier)
            assert isinstance(proof, RecordProof)
            assert proof.record is None
            assert proof.salt is None
            new = await history.ledger.checkpoint(KEY)
            rest = await history.ledger.prove(record.id, new)
            assert rest.record is not None
            assert rest.record["new_memory"] is None

    async def test_a_record_that_is_gone_is_not_proven_as_an_erased_one(
        self, tmp_path: Path
    ) -> None:
        path = tmp_path / "history.db"
        async with open_history(path, ledger=True) as history:
            await history.add_history("m", None, "likes tea", "ADD", id="gone")
            kept = await history.ledger.checkpoint(KEY)
            change(path, "DELETE FROM history")
            with pytest.raises(NotProven, match="gone"):
                await history.ledger.prove("gone", kept)

    async def test_a_record_that_cannot_be_proven_is_refused(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            empty = await history.ledger.checkpoint(KEY)
            record = await history.add_history("m", None, "likes tea", "ADD")
            with pytest.raises(InvalidInput, match="no leaf"):
                await history.ledger.prove(record.id, empty)
            full = await history.ledger.checkpoint(KEY)
            with pytest.raises(InvalidInput, match="after this checkpoint"):
                await history.ledger.prove(record.id, empty)
            await history.ledger.prove_growth(empty, full)
            with pytest.raises(InvalidInput, match="more leaves"):
                await history.ledger.prove_growth(full, empty)
            for other in (Checkpoint.make(KEY, 3, bytes(32)), Checkpoint.make(KEY, 99, full.root)):
                with pytest.raises(NotProven):
                    await history.ledger.prove(record.id, other)
                with pytest.raises(NotProven):
                    await history.ledger.prove_growth(*sorted((full, other), key=_size))


def _size(checkpoint: Checkpoint) -> int:
    return checkpoint.size


class TestCheckpoints:
    async def test_a_checkpoint_is_made_whenever_the_ledger_has_grown(
        self, open_store: OpenStore
    ) -> None:
        async with open_store() as history:
            made = history.ledger.checkpoints(KEY, every_s=0.001)
            sizes = [(await anext(made)).size]
            for number in range(2):
                await history.add_history("m", None, f"likes {number}", "ADD")
                sizes.append((await anext(made)).size)
            assert sizes == [0, 3, 6]  # a record, and the operation of the last checkpoint

    async def test_arguments_are_checked(self, open_store: OpenStore) -> None:
        async with open_store() as history:
            wrong: Any = "key"
            ledger = history.ledger
            calls: list[Callable[[], Awaitable[object]]] = [
                lambda: ledger.checkpoint(wrong),
                lambda: ledger.verify(wrong),
                lambda: anext(ledger.checkpoints(KEY, every_s=0)),
            ]
            for call in calls:
                with pytest.raises(InvalidInput):
                    await call()


class TestBlocking:
    @pytest.mark.parametrize("store", stores("file", "postgres", "mariadb"))
    def test_a_blocking_manager_has_a_ledger(
        self, store: str, request: pytest.FixtureRequest, tmp_path: Path
    ) -> None:
        history = BlockingHistoryManager(url_of(store, request, tmp_path), ledger=True)
        history.add_history("m", None, "likes tea", "ADD")
        (record,) = history.query_history()
        checkpoint = history.ledger.checkpoint(KEY)
        history.ledger.prove(record.id, checkpoint).require_proven()
        history.reset()
        history.add_history("m", None, "likes tea", "ADD")
        new = history.ledger.checkpoint(KEY)
        history.ledger.prove_growth(checkpoint, new).require_proven()
        report = history.ledger.verify(checkpoint, new)
        assert report.is_intact
        assert (report.records, report.reset) == (1, 1)
        history.close()
