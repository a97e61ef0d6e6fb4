"""Acquiring and releasing a pool's connections, also if functions that a user gave to it fail."""

import logging
from typing import Any

from async_history._core.concurrency.until_free import until_free
from async_history._postgres.connecting.stack import require_stack
from async_history._postgres.errors import DriverError, is_full
from async_history.errors import HistoryError, StorageError

_log = logging.getLogger("async_history")


async def acquire_from(pool: Any, where: str, timeout_s: float) -> Any:
    """Return a connection of a pool; if the server has no free one, try again for `timeout_s`.

    Each try begins in the pool, which may have got a connection back meanwhile.

    Raises:
        TimeoutError, the driver's errors: there is none.
        StorageError: the pool's `connect`, `init` or `setup` failed.
        RecursionError: the stack has no room to give a connection back.
    """
    require_stack()
    try:
        return await until_free(lambda left_s: pool.acquire(timeout=left_s), is_full, timeout_s)
    except (HistoryError, *DriverError):
        raise
    except Exception as error:
        raise StorageError(
            f"{where} gave no connection: the pool's connect, init or setup raised {error!r}"
        ) from error


async def release_to(pool: Any, where: str, connection: Any, timeout_s: float | None) -> None:
    """Return a connection to its pool. If the pool's `reset` fails, asyncpg closes the connection.

    Raises:
        TimeoutError, the driver's errors: it was closed.
    """
    try:
        await pool.release(connection, timeout=timeout_s)
    except DriverError:
        raise
    except Exception:
        # The caller's read or write is done.
        _log.warning("%s: the pool's reset failed", where, exc_info=True)
