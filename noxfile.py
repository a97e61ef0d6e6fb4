"""What a change must pass, task by task: `nox --list` shows the sessions, `.ci/run` runs them all.

Each session installs what it needs into its own environment. With `--no-venv --no-install` it uses
the active one instead, which then has the groups `dev`, `bench`, `frameworks` and `uvloop`.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import nox

nox.needs_version = ">=2025.2"
nox.options.sessions = ["lint", "types", "imports", "docs"]

BENCHMARKS = (
    "peers",
    "mem0",
    "mem0_waiting",
    "postgres",
    "growth",
    "follow",
    "timeline",
    "moving",
    "queries",
    "reads",
    "latest",
    "sizes",
    "plans",
    "owners",
    "owners_postgres",
    "owner_changes",
    "telemetry",
    "page",
    "encryption",
    "encryption --postgres",
    "ledger",
    "ledger --postgres",
    "processes",
    "sql",
    "sql_queries",
)

USES = {
    "sql": """
import asyncio
from sqlalchemy.ext.asyncio import create_async_engine
from async_history import open_history

async def main():
    engine = create_async_engine("sqlite+aiosqlite:///history.db")
    async with open_history(engine=engine) as history:
        await history.add_history("m", None, "tea", "ADD")
        (record,) = await history.get_history("m")
        assert record.new_memory == "tea"
    await engine.dispose()

asyncio.run(main())
""",
    "mysql": """
import asyncio
from async_history import StorageUnreachable, open_history

async def main():
    try:
        await open_history("mysql://nobody@127.0.0.1:1/none")
    except StorageUnreachable:
        return
    raise AssertionError("no server can be at port 1")

asyncio.run(main())
""",
}
"""What an extra is for, as a program that runs with it alone."""

ON_UVLOOP = (
    "tests/contract/test_cancellation.py",
    "tests/contract/test_follow.py",
    "tests/contract/test_latest.py",
    "tests/contract/test_order_of_calls.py",
    "tests/contract/test_threads.py",
    "tests/sqlite/test_cancelled_reads.py",
    "tests/sqlite/test_hops.py",
    "tests/mem0/test_lifecycle.py",
    "tests/web/test_feed.py",
)
"""Calls in any order, cancelled and closed at any time."""

OLDEST_POSTGRES = "13"
OLDEST_SQLALCHEMY = "2.0.40"
PYTEST = ("pytest", "-q", "-p", "no:cacheprovider")  # several may run at once


def install(session: nox.Session, *groups: str) -> None:
    """Install the package as it lies here, and dependency groups."""
    session.install("-e", ".", *(f"--group={group}" for group in groups))


@nox.session(python=["3.11", "3.12", "3.13", "3.14", "3.15"])
def tests(session: nox.Session) -> None:
    """The tests, or those that the arguments after `--` choose."""
    install(session, "test")
    session.run("pytest", *session.posargs)


@nox.session
def postgres(session: nox.Session) -> None:
    """What depends on PostgreSQL's version, on those given: random calls, and overloads that others
    plant, as everybody may up to 14. On 13 all the rest too.

    Only 16 and 18 come with the tests; `.ci/postgres_versions` brings the others.
    """
    install(session, "test")
    for version in session.posargs or ["16"]:
        chosen = [
            "tests/contract/test_stateful.py",
            "tests/postgres/test_search_path.py",
            "-n",
            "0",
        ]
        if version == OLDEST_POSTGRES:
            chosen = ["tests/contract", "tests/postgres"]
        session.run(
            *(*PYTEST, "-m", "postgres and versions and not pgbouncer", *chosen),
            env={"TEST_POSTGRES_VERSION": version},
        )


@nox.session
def mem0(session: nox.Session) -> None:
    """What depends on mem0's version, with the newest 1.0."""
    install(session, "test")
    with TemporaryDirectory() as folder:
        pip = ("python", "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder)
        session.run(*pip, "mem0ai==1.0.11")
        session.run(
            *PYTEST, "tests/mem0", "-m", "mem0", *session.posargs, env={"PYTHONPATH": folder}
        )


@nox.session
def frameworks(session: nox.Session) -> None:
    """agno and LlamaIndex, which build mem0's classes themselves."""
    install(session, "test", "frameworks")
    session.run(*PYTEST, "tests/mem0/test_frameworks.py", *session.posargs)


@nox.session
def uvloop(session: nox.Session) -> None:
    """What depends on the event loop, on the one that uvicorn takes where it is installed."""
    install(session, "test", "uvloop")
    session.run(*PYTEST, "-p", "tests.support.on_uvloop", *(session.posargs or ON_UVLOOP))


@nox.session
def sql(session: nox.Session) -> None:
    """The backend on SQLAlchemy: on MariaDB, where it is installed, SQLite and PostgreSQL."""
    install(session, "test")
    session.run(*PYTEST, "tests/sql", *session.posargs)


@nox.session
def sqlalchemy(session: nox.Session) -> None:
    """The same with the oldest SQLAlchemy that the extra `sql` allows."""
    install(session, "test")
    with TemporaryDirectory() as folder:
        pip = ("python", "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder)
        session.run(*pip, f"sqlalchemy=={OLDEST_SQLALCHEMY}")
        session.run(*PYTEST, "tests/sql", *session.posargs, env={"PYTHONPATH": folder})


@nox.session
def lint(session: nox.Session) -> None:
    """Style, spelling, and the form of our configuration."""
    session.install("--group=lint")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("codespell")
    session.run("validate-pyproject", "pyproject.toml")
    for schema, folder in (("workflows", "workflows"), ("issue-forms", "ISSUE_TEMPLATE")):
        files = [path for path in Path(".github", folder).glob("*.yml") if path.stem != "config"]
        session.run(
            "check-jsonschema", f"--builtin-schema=vendor.github-{schema}", *map(str, files)
        )
    compose = "examples/compose/compose.yaml"
    session.run("check-jsonschema", "--builtin-schema=vendor.compose-spec", compose)


@nox.session
def types(session: nox.Session) -> None:
    """mypy --strict on the package, the tests and the benchmarks."""
    install(session, "test", "bench")
    session.run("mypy", *session.posargs)


@nox.session
def imports(session: nox.Session) -> None:
    """The order of imports between the packages."""
    install(session, "imports")
    session.run("lint-imports")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into a folder (a temporary one), without a warning."""
    install(session, "docs")
    with TemporaryDirectory() as temporary:
        folder = session.posargs[0] if session.posargs else temporary
        session.run("sphinx-build", "-W", "--keep-going", "-n", "-q", "docs", folder)


@nox.session
def build(session: nox.Session) -> None:
    """Build the archives into a folder (a temporary one), and inspect them."""
    session.install("--group=build")
    with TemporaryDirectory() as temporary:
        folder = session.posargs[0] if session.posargs else temporary
        session.run("python", "-m", "build", "--outdir", folder)
        archives = [str(path) for path in Path(folder).glob("async_history-*")]
        session.run("twine", "check", "--strict", *archives)
        session.run("check-wheel-contents", folder)


@nox.session
def extras(session: nox.Session) -> None:
    """The wheel with one extra in a fresh environment, for those that bring a database."""
    session.install("--group=build")
    with TemporaryDirectory() as folder:
        session.run("python", "-m", "build", "--wheel", "--outdir", folder)
        (wheel,) = Path(folder).glob("*.whl")
        for extra in session.posargs or USES:
            python = Path(folder, extra, "bin", "python")
            session.run("python", "-m", "venv", str(python.parents[1]))
            pip = (str(python), "-m", "pip", "install", "--quiet")
            session.run(*pip, f"{wheel}[{extra}]", external=True)
            with session.chdir(python.parents[1]):
                session.run(str(python), "-I", "-c", USES[extra], external=True)


@nox.session(name="bench-smoke")
def bench_smoke(session: nox.Session) -> None:
    """A short run of the benchmarks, or of those named: whether they work, not what they say."""
    install(session, "bench")
    with TemporaryDirectory() as results:
        for name, *options in map(str.split, BENCHMARKS):
            if not session.posargs or name in session.posargs:
                script = ("python", "-m", f"benchmarks.{name}")
                session.run(*script, *options, "--quick", "--results", results)
