"""Files of keys, tokens, checkpoints and proofs that a command reads."""

from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from async_history.blocking import BlockingHistoryManager
from async_history.cli.app import app

pytestmark = [pytest.mark.once, pytest.mark.filterwarnings("ignore")]  # mem0's own


@pytest.mark.parametrize(
    "command",
    [
        "serve --port 0 --token-file FILE",
        "--keys-file FILE encrypt",
        "checkpoint --key FILE",
        "verify --checkpoint FILE",
        "prove a --checkpoint FILE",
        "verify-proof FILE --verifier x",
        "check --mem0 FILE",
    ],
)
def test_a_file_that_is_not_text_is_an_error_of_one_line(command: str, tmp_path: Path) -> None:
    """Nothing of its content is shown."""
    file, store = tmp_path / "file", tmp_path / "history.db"
    file.write_bytes(b"geheim \xff\xfe\0")
    with closing(BlockingHistoryManager(store)) as history:
        history.add_history("m", None, "likes tea", "ADD")
    words = [str(file) if word == "FILE" else word for word in command.split()]
    done = CliRunner().invoke(app, words, env={"ASYNC_HISTORY_URL": str(store)})
    assert done.exit_code == 2, done.output
    assert done.stderr.strip().endswith("not text in UTF-8")
    assert "geheim" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
