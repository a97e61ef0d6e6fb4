"""`async-history rekey`: the keys of an encrypted history."""

import json
from dataclasses import asdict

import typer

from async_history.cli import stores
from async_history.cli.terminal import escape_controls, show_share
from async_history.cli.termination import run
from async_history.encryption import KeyRotation


def rekey(url: str, *, as_json: bool) -> None:
    """Wrap the keys of a history by the current master key."""

    async def rotate() -> KeyRotation:
        async with (
            stores.opened(url, create=False) as history,
            show_share("the data keys") as note,
        ):
            return await history.encryption.rotate_keys(on_progress=note)

    rotation = run(rotate())
    keys = "1 data key is" if rotation.data_keys == 1 else f"{rotation.data_keys:,} data keys are"
    typer.echo(
        json.dumps(asdict(rotation))
        if as_json
        else escape_controls(f"{keys} wrapped by master key {rotation.master_key!r} now")
    )
