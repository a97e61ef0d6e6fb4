"""`async-history rekey`, `encrypt` and `decrypt`: a history's keys and clear texts."""

from collections.abc import Mapping
from dataclasses import asdict

import typer

from async_history._core.json_line import json_line
from async_history._core.wording import counted
from async_history.cli import stores
from async_history.cli.terminal import echo_json, one_line, show_share
from async_history.cli.termination import run
from async_history.encryption import (
    DataKeyReplacement,
    DecryptionReport,
    EncryptionReport,
    KeyRotation,
)
from async_history.errors import InvalidInput


def rekey(url: str, *, as_json: bool) -> None:
    """Wrap the keys of a history with the current master key."""

    async def rotate() -> KeyRotation:
        async with (
            stores.opened(url, create=False) as history,
            show_share("the data keys") as note,
        ):
            return await history.encryption.rotate_keys(on_progress=note)

    rotation = run(rotate())
    keys = counted(rotation.data_keys, "data key is", "data keys are")
    typer.echo(
        json_line(asdict(rotation))
        if as_json
        else one_line(f"{keys} wrapped by master key {rotation.master_key!r} now")
    )


def replace_data_keys(url: str, owner: Mapping[str, str | None], *, as_json: bool) -> None:
    """Replace the data keys of an owner, or all data keys."""

    async def replace() -> DataKeyReplacement:
        async with (
            stores.opened(url, create=False) as history,
            show_share("the records") as note,
        ):
            return await history.encryption.replace_data_keys(**owner, on_progress=note)

    done = run(replace())
    typer.echo(
        json_line(asdict(done))
        if as_json
        else f"replaced {counted(done.data_keys, 'data key')}; "
        f"{counted(done.records, 'record')} and {counted(done.messages, 'message')} are encrypted "
        "under new ones"
    )


def encrypt(url: str, *, as_json: bool) -> None:
    """Encrypt a history's clear texts in place, and turn encryption on.

    Raises:
        InvalidInput: no master keys are given.
    """
    ring = stores.keys()
    if ring is None:
        raise InvalidInput(
            "encrypt needs master keys: async-history --keys-file FILE encrypt, or those in "
            "ASYNC_HISTORY_KEYS"
        )

    async def run_encrypt() -> EncryptionReport:
        async with (
            stores.opened(url, create=False, keys=ring) as history,
            show_share("the records in clear") as note,
        ):
            return await history.encryption.encrypt(on_progress=note)

    report = run(run_encrypt())
    if as_json:
        echo_json(asdict(report))
        return
    typer.echo(report.outcome())
    for sentence in report.remains:
        typer.echo(one_line(sentence))


def decrypt(url: str, *, as_json: bool) -> None:
    """Decrypt a history in place, and turn encryption off."""

    async def run_decrypt() -> DecryptionReport:
        async with (
            stores.opened(url, create=False) as history,
            show_share("the records") as note,
        ):
            return await history.encryption.decrypt(on_progress=note)

    report = run(run_decrypt())
    typer.echo(json_line(asdict(report)) if as_json else report.outcome())
