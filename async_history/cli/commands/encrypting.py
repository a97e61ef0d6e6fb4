"""The commands of an encrypted history: `rekey`, `encrypt` and `decrypt`."""

from typing import Annotated

import typer

from async_history.cli import encrypting as _encrypting
from async_history.cli import owner_options as _owner_options
from async_history.cli import stores
from async_history.cli.errors import one_line_errors
from async_history.cli.options import AsReport, Db
from async_history.cli.owner_options import Agent, App, Run, User
from async_history.errors import InvalidInput


def rekey(
    db: Db = None,
    data_keys: Annotated[
        bool,
        typer.Option(
            "--data-keys", help="Replace data keys: encrypt the records again under new ones."
        ),
    ] = False,
    user: User = None,
    agent: Agent = None,
    run: Run = None,
    app_id: App = None,
    as_json: AsReport = False,
) -> None:
    """Wrap the keys of an encrypted history with the current master key, or replace its data keys.

    The current master key is the first one in `async-history --keys-file FILE rekey` or in
    ASYNC_HISTORY_KEYS. The previous one must be there too, and can be removed afterwards. Programs
    that use the history continue. It may be interrupted and run again.

    With --data-keys the data keys of an owner, or of all, are replaced instead.
    """
    with one_line_errors():
        owner = _owner_options.owner(user, agent, run, app_id)
        if data_keys:
            _encrypting.replace_data_keys(stores.to_write(db), owner, as_json=as_json)
            return
        if any(owner.values()):
            raise InvalidInput("an owner needs --data-keys: master keys apply to all owners")
        _encrypting.rekey(stores.to_write(db), as_json=as_json)


def encrypt(db: Db = None, as_json: AsReport = False) -> None:
    """Encrypt a history's clear texts in place, then write its file again, or vacuum.

    First close the programs that have it open without keys: afterwards it can be opened with keys
    only. Give the keys by `async-history --keys-file FILE encrypt`, or in ASYNC_HISTORY_KEYS.
    Programs with keys continue. It may be interrupted and run again. Backups keep the clear texts.
    """
    with one_line_errors():
        _encrypting.encrypt(stores.to_write(db), as_json=as_json)


def decrypt(db: Db = None, as_json: AsReport = False) -> None:
    """Decrypt a history in place, and remove its keys: the opposite of encrypt.

    Give the master keys by `async-history --keys-file FILE decrypt`, or in ASYNC_HISTORY_KEYS. From
    now on new records stay in clear, also those of programs that have it open with keys. Start
    these programs without keys afterwards: opening with keys turns encryption on again. It may be
    interrupted and run again; encrypt reverses it.
    """
    with one_line_errors():
        _encrypting.decrypt(stores.to_write(db), as_json=as_json)
