"""Random operations: on every store the ledger equals a naive tree of what they did."""

import itertools
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from async_history import HistoryManager, open_history
from async_history.ledger import Checkpoint
from tests.conftest import new_stores, stores
from tests.ledger.ledgers import KEY, leaves_of, naive_root
from tests.support.keys import ring

pytestmark = pytest.mark.once
ON_SERVERS = stores("postgres", "mariadb", "sqlalchemy")
OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(("add", "update", "owned", "erase", "prune", "reset", "check")),
        st.integers(0, 4),
    ),
    min_size=1,
    max_size=12,
)


def tried(most: int) -> settings:
    return settings(max_examples=most, deadline=None, suppress_health_check=list(HealthCheck))


class TestRandomOperations:
    @tried(12)
    @given(operations=OPERATIONS)
    async def test_the_ledger_equals_the_naive_tree(
        self, operations: list[tuple[str, int]]
    ) -> None:
        await check_random(open_history("memory://", ledger=True), operations)

    @pytest.mark.nightly
    @pytest.mark.timeout(1_200)
    @tried(300)
    @given(operations=OPERATIONS)
    async def test_the_ledger_equals_the_naive_tree_after_many_operations(
        self, operations: list[tuple[str, int]]
    ) -> None:
        await check_random(open_history("memory://", ledger=True, keys=ring("one")), operations)

    @pytest.mark.parametrize("name", ON_SERVERS)
    @tried(3)
    @given(operations=OPERATIONS)
    async def test_the_ledger_equals_the_naive_tree_on_a_server(
        self,
        name: str,
        request: pytest.FixtureRequest,
        tmp_path_factory: pytest.TempPathFactory,
        operations: list[tuple[str, int]],
    ) -> None:
        store = new_stores(name, request, tmp_path_factory.mktemp(name))()
        await check_random(store(ledger=True), operations)

    @pytest.mark.parametrize("name", ON_SERVERS)
    @pytest.mark.nightly
    @pytest.mark.timeout(1_200)
    @tried(100)
    @given(operations=OPERATIONS)
    async def test_the_ledger_equals_the_naive_tree_after_many_operations_on_a_server(
        self,
        name: str,
        request: pytest.FixtureRequest,
        tmp_path_factory: pytest.TempPathFactory,
        operations: list[tuple[str, int]],
    ) -> None:
        store = new_stores(name, request, tmp_path_factory.mktemp(name))()
        await check_random(store(ledger=True, keys=ring("one")), operations)


async def check_random(history: HistoryManager, operations: list[tuple[str, int]]) -> None:
    """Do some operations; then verify, and compare the tree with the naive one."""
    kept: list[Checkpoint] = []
    pruned = 0
    fresh = (f"memory-{number}" for number in itertools.count())
    async with history:
        for what, number in operations:
            name = f"m{number}"
            if what == "add":
                await history.add_history(next(fresh), None, "likes tea", "ADD")
            elif what == "update":
                await history.update_history(next(fresh), f"likes {number}")
            elif what == "owned":
                owner = {"user_id": f"u{number}"}
                await history.add_history(next(fresh), None, "hi", "ADD", owner=owner)
            elif what == "erase":
                found = [r async for r in history.query_history(limit=number + 1)]
                if found:
                    await history.erase(memory_ids=[found[-1].memory_id], reason=name)
            elif what == "prune":
                until = datetime.now(UTC) + timedelta(days=1)
                pruned += (await history.prune(older_than=until, keep_last=number % 2)).records
            elif what == "reset":
                await history.reset()
            else:
                kept.append(await history.ledger.checkpoint(KEY))
        kept.append(await history.ledger.checkpoint(KEY))
        report = await history.ledger.verify(*kept)
        assert report.is_intact, report.faults
        assert not report.unattested
        assert report.unattested_owners == report.unattested_operations == 0
        assert (report.records, report.pruned) == (await history.count_history(), pruned)
        leaves = await leaves_of(history, report.size)
        commitments = [leaf.commitment for leaf in leaves.values()]
        for one in kept:
            assert one.root == naive_root(commitments[: one.size])
