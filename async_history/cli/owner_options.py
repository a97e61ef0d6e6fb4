"""The options for an owner's scopes and the keys of a cause."""

from collections.abc import Mapping, Sequence
from typing import Annotated

import typer

from async_history import InvalidInput

User = Annotated[
    str | None, typer.Option("--user", metavar="ID", help="Of this user's memories (user_id).")
]
Agent = Annotated[
    str | None, typer.Option("--agent", metavar="ID", help="Of this agent's memories (agent_id).")
]
Run = Annotated[
    str | None, typer.Option("--run", metavar="ID", help="Of memories of this run (run_id).")
]
App = Annotated[
    str | None,
    typer.Option("--app", metavar="ID", help="Of this application's memories (app_id)."),
]
Cause = Annotated[
    list[str] | None,
    typer.Option(
        "--cause", metavar="KEY=TEXT", help="With this cause; may be repeated for several keys."
    ),
]


def owner(
    user: str | None, agent: str | None, run: str | None, app: str | None
) -> dict[str, str | None]:
    """Return the arguments of `query_history` for the scopes of an owner."""
    return {"user_id": user, "agent_id": agent, "run_id": run, "app_id": app}


def cause(given: Sequence[str] | None) -> Mapping[str, str] | None:
    """Return the argument of `query_history` for keys of a cause.

    Raises:
        InvalidInput: one is not KEY=TEXT, or a key is given twice.
    """
    asked: dict[str, str] = {}
    for each in given or ():
        key, is_pair, text = each.partition("=")
        if not is_pair or not key:
            raise InvalidInput(f"--cause takes KEY=TEXT, such as request_id=17, not {each!r}")
        if asked.setdefault(key, text) != text:
            raise InvalidInput(f"--cause: {key!r} is given twice, and has one text")
    return asked or None
