"""The commands of an encrypted history: `rekey`, `encrypt` and `decrypt`."""

from typing import Annotated

import typer

from async_history.cli import asked as _asked
from async_history.cli import encrypting as _encrypting
from async_history.cli import stores
from async_history.cli.asked import Agent, App, Run, User
from async_history.cli.errors import one_line_errors
from async_history.cli.options import AsReport, Db
from async_history.errors import InvalidInput


def rekey(
    db: Db = None,
    data_keys: Annotated[
        bool,
        typer.Option(
            "--data-keys", help="Replace data keys: encrypt the records under new ones, too."
        ),
    ] = False,
    user: User = None,
    agent: Agent = None,
    run: Run = None,
    app_id: App = None,
    as_json: AsReport = False,
) -> None:
    """Wrap the keys of an encrypted history by the current master key, or replace its data keys.

    That is the first of the master keys, which are given by `async-history --keys-file FILE rekey`,
    or in ASYNC_HISTORY_KEYS. The one before must be there too, and can be removed afterwards.
    Programs that use the history go on. It may be interrupted and run again.

    With --data-keys the data keys of an owner, or of all, are replaced instead.
    """
    with one_line_errors():
        owner = _asked.owner(user, agent, run, app_id)
        if data_keys:
            _encrypting.replace_data_keys(stores.to_write(db), owner, as_json=as_json)
            return
        if any(owner.values()):
            raise InvalidInput("an owner is for --data-keys: master keys are those of all")
        _encrypting.rekey(stores.to_write(db), as_json=as_json)


def encrypt(db: Db = None, as_json: AsReport = False) -> None:
    """Encrypt in place what a history has in clear, then write its file again, or vacuum.

    Close the programs that have it open without keys first: from then on it is opened with keys
    only. They are given by `async-history --keys-file FILE encrypt`, or in ASYNC_HISTORY_KEYS.
    Programs with keys go on. It may be interrupted and run again. Backups keep the texts in clear.
    """
    with one_line_errors():
        _encrypting.encrypt(stores.to_write(db), as_json=as_json)


def decrypt(db: Db = None, as_json: AsReport = False) -> None:
    """Decrypt in place all that a history has, and remove its keys: the opposite of encrypt.

    The master keys are given by `async-history --keys-file FILE decrypt`, or in ASYNC_HISTORY_KEYS.
    From now on what is recorded stays in clear, also by the programs that have it open with keys.
    Start those without keys afterwards: one that opens it with keys turns encryption on again. It
    may be interrupted and run again; encrypt turns back.
    """
    with one_line_errors():
        _encrypting.decrypt(stores.to_write(db), as_json=as_json)
