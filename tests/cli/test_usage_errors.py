"""The parser's messages, which quote arguments: no password of a URL is in them."""

import re

import pytest
import typer.main

from async_history.cli.app import app
from tests.cli.programs import Invoke

pytestmark = pytest.mark.once

URL = "postgresql://ann:s3cr:et/w@rd@127.0.0.1:1/db"
TOO_MANY = [URL] * 5
"""More arguments than a command takes: it is refused before it runs."""
PARSER = typer.main.get_group(app)
COMMANDS = sorted(PARSER.commands.keys() - {"run"})  # which runs its arguments


@pytest.mark.parametrize("command", COMMANDS)
def test_no_message_of_the_parser_shows_a_password(command: str, invoke: Invoke) -> None:
    options = [name for option in PARSER.commands[command].params for name in option.opts]
    for arguments in (
        [command, *TOO_MANY],
        [command, f"--{URL}"],
        [command, f"-{URL}"],
        [command, f"--db={URL}", f"--no-{URL}"],
        *([command, name, *TOO_MANY] for name in options if name.startswith("-")),
        *([command, f"{name}={URL}", *TOO_MANY] for name in options if name.startswith("--")),
    ):
        refused = invoke(*arguments)
        assert refused.exit_code == 2, (arguments, refused.output)
        assert not re.search("s3cr|et/|w@rd", refused.output), arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["log", "m", URL],
            "Got unexpected extra argument(s) (postgresql://ann:***@127.0.0.1:1/db",
        ),
        (["log", f"--{URL}"], "No such option: --postgresql://ann:***@127.0.0.1:1/db"),
        ([f"--{URL}"], "No such option: --postgresql://ann:***@127.0.0.1:1/db"),
        ([URL], "No such command 'postgresql://ann:***@127.0.0.1:1/db'"),
        (["log", "m", "password=s3cret"], "Got unexpected extra argument(s) (password=***"),
        (["logs", URL], "No such command 'logs'. Did you mean 'log'?"),
    ],
)
def test_what_else_a_message_quotes_is_shown(
    arguments: list[str], message: str, invoke: Invoke
) -> None:
    refused = invoke(*arguments, env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"})
    assert refused.exit_code == 2
    assert message in refused.output
