"""The commands of an encrypted history: `rekey`, `encrypt` and `decrypt`."""

from async_history.cli import encrypting as _encrypting
from async_history.cli import stores
from async_history.cli.errors import one_line_errors
from async_history.cli.options import AsReport, Db


def rekey(db: Db = None, as_json: AsReport = False) -> None:
    """Wrap the keys of an encrypted history by the current master key.

    That is the first of the master keys, which are given by `async-history --keys-file FILE rekey`,
    or in ASYNC_HISTORY_KEYS. The one before must be there too, and can be removed afterwards.
    Programs that use the history go on. It may be interrupted and run again.
    """
    with one_line_errors():
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
