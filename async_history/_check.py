"""The check of a whole history that is not open: its records and its indexes."""

from dataclasses import replace
from functools import partial

from async_history._core.checking.check_report import CheckReport
from async_history._core.encryption.key_ring import KeyRing
from async_history._core.options import HistoryOptions
from async_history._core.validation import shown
from async_history._opening import from_any_folder, is_server, open_history, sqlite_file
from async_history.errors import InvalidInput


async def check_history(
    url: str,
    *,
    repair: bool = False,
    lock_timeout_s: float = 30.0,
    keys: KeyRing | None = None,
) -> CheckReport:
    """Open a history, check it as `HistoryManager.check` does, and close it.

    Nothing is created or migrated, and nothing is changed without `repair`.

    Args:
        repair: rebuild a file's index first. Nothing is lost: the index is derived from records.
        keys: the master keys of an encrypted history.

    Raises:
        KeyMissing: it is encrypted, and a key is missing.
        StorageError: there is no history at the URL, or it can't be read.
        MigrationError: its layout is not known, or two records with the same id differ.
        CursorGone: records were removed while they were read. Call it again.
    """
    file = sqlite_file(url)
    if file is None and not is_server(url):
        raise InvalidInput(f"url must name a file or a server's history to check, not {shown(url)}")
    where = from_any_folder(url)  # valid also after a change of directory
    if repair:
        if file is None:
            raise InvalidInput("repair is for files: REINDEX repairs an index of PostgreSQL")
        from async_history._sqlite.check import repair_file
        from async_history._sqlite.connecting.errors import absolute
        from async_history._sqlite.connecting.worker_thread import run_in_thread

        await run_in_thread(partial(repair_file, absolute(file), lock_timeout_s))
    options: HistoryOptions = {"create": False, "migrate": False}
    if keys is not None:
        options["keys"] = keys
    if file is not None:
        options["lock_timeout_s"] = lock_timeout_s
    async with open_history(where, **options) as history:
        return replace(await history.check(), is_repaired=repair)
