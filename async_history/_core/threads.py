"""Starting threads, which a process may have no more of."""

import threading

from async_history.errors import StorageError


def start(thread: threading.Thread) -> None:
    """Start a thread.

    Raises:
        StorageError: the system gives this process no more threads, or the program is ending.
    """
    try:
        thread.start()
    except RuntimeError as error:
        raise StorageError(
            f"no thread could be started ({error}): end some of this process's "
            f"{threading.active_count()}, or raise its limits of threads and memory"
        ) from error
