"""The ledger's commands, on a server."""

import asyncio
from pathlib import Path

import pytest
from typer.testing import CliRunner

from async_history import open_history
from async_history.cli.app import app
from tests.conftest import stores, url_of

pytestmark = pytest.mark.once


@pytest.mark.parametrize("store", stores("postgres", "mariadb"))
def test_each_command_of_the_ledger(
    store: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = url_of(store, request, tmp_path)

    def ran(*arguments: object) -> str:
        done = CliRunner().invoke(app, [*map(str, arguments)])
        assert done.exit_code == 0, done.output
        return done.stdout

    async def recorded() -> None:
        async with open_history(url) as history:
            await history.add_history("m", None, "likes tea", "ADD", id="before")

    private, proof = tmp_path / "ledger.key", tmp_path / "proof.json"
    first, last = tmp_path / "first", tmp_path / "last"
    asyncio.run(recorded())
    verifier = ran("ledger-key", "example.org/history", private).strip()
    first.write_text(ran("checkpoint", "--key", private, "--db", url))
    assert "before" in ran("verify", "--checkpoint", first, "--db", url)
    last.write_text(ran("checkpoint", "--key", private, "--db", url))
    proof.write_text(ran("prove", "--grown-from", first, "--checkpoint", last, "--db", url))
    assert "proven" in ran("verify-proof", proof, "--verifier", verifier)
