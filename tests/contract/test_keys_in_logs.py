"""No key is shown in logs, warnings, errors or `repr`, whatever is done with a history."""

import asyncio
import base64
import contextlib
import logging
import os
import traceback
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from async_history import HistoryError
from async_history._core.encryption.aes import KEY_BYTES
from async_history.encryption import KeyRing
from async_history.ledger import LedgerKey
from tests.conftest import OpenStore, new_stores, stores
from tests.support.encrypted_stores import all_of, fill
from tests.support.keys import master, ring

LOGGERS = ("asyncio", "aiosqlite", "asyncpg", "sqlalchemy", "aiomysql", "asyncmy", "async_history")
FORMS: dict[str, Callable[[bytes], str]] = {
    "raw": lambda key: key.decode("latin-1"),
    "repr": lambda key: repr(key)[2:-1],
    "hex": bytes.hex,
    "numbers": lambda key: ", ".join(map(str, key)),
    "base64": lambda key: base64.b64encode(key).decode().rstrip("="),
    "base64 of URLs": lambda key: base64.urlsafe_b64encode(key).decode().rstrip("="),
}
"""The ways to write a key."""


@pytest.fixture(params=stores("file", "postgres", "mariadb", "sqlalchemy"))
def store(request: pytest.FixtureRequest, tmp_path: Path) -> OpenStore:
    return new_stores(request.param, request, tmp_path)()


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The random bytes of keys: every wrapping key, data key and key of an index."""
    keys: list[bytes] = []
    urandom = os.urandom

    def drawing(size: int) -> bytes:
        value = urandom(size)
        if size == KEY_BYTES:
            keys.append(value)
        return value

    monkeypatch.setattr(os, "urandom", drawing)
    return keys


class Shown:
    """Everything that is shown: log entries, warnings, errors, and printed values."""

    def __init__(self, log: pytest.LogCaptureFixture) -> None:
        self._log = log
        self._texts: list[str] = []

    def show(self, *values: object) -> None:
        """Print values, as a program that logs them does."""
        self._texts += [form(value) for value in values for form in (str, repr)]

    @contextlib.contextmanager
    def error(self, kind: type[Exception]) -> Iterator[None]:
        """Print the expected error and its causes."""
        with pytest.raises(kind) as caught:
            yield
        self.show(caught.value, "".join(traceback.format_exception(caught.value)))

    def loggers(self) -> set[str]:
        """Return the names of the loggers that were used."""
        return {one.name for one in self._log.records}

    def text(self) -> str:
        """Return everything that was shown."""
        logged = [
            f"{one.getMessage()} {one.args!r} {one.exc_text} {one.__dict__!r}"
            for one in self._log.records
        ]
        return "\n".join([*self._texts, *logged])

    def forms_of(self, keys: list[bytes]) -> list[str]:
        """Return the forms of these keys that were shown."""
        text = self.text().lower()
        return [name for name, form in FORMS.items() for key in keys if form(key).lower() in text]


@pytest.fixture
def shown(caplog: pytest.LogCaptureFixture) -> Iterator[Shown]:
    for name in ("", *LOGGERS):
        caplog.set_level(logging.DEBUG, name)
    shown = Shown(caplog)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_, **__: shown.show(message)
        yield shown


async def test_no_key_is_shown(store: OpenStore, shown: Shown, drawn: list[bytes]) -> None:
    """With everything that drivers and asyncio can log."""
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = 0  # each callback is logged
    names = ("one", "two", "three")
    rings = {name: ring(name) for name in names}
    shown.show(*rings.values())
    with shown.error(HistoryError):
        KeyRing({"one": master("one")[:-1]})
    async with store(keys=rings["one"], ledger=True) as history:
        await fill(history)
        shown.show(history, history.encryption, history.ledger, await history.stats())
        with shown.error(HistoryError):
            await history.add_history("m0", None, "else", "ADD", id="00")
        checkpoint = await history.ledger.checkpoint(LedgerKey.generate("example.org/history"))
    for options in ({}, {"keys": rings["two"]}):
        with shown.error(HistoryError):
            await store(**options)
    async with store(keys=ring("two", "one")) as history:
        shown.show(await history.encryption.rotate_keys())
        shown.show(await history.encryption.replace_data_keys(user_id="ann"))
        shown.show(await history.encryption.replace_data_keys())
        await lose_keys(history, shown)
        shown.show(await history.ledger.verify(checkpoint))
        shown.show(await history.erase(user_id="ann", reason="asked", vacuum=False))
        shown.show(await history.prune(older_than=timedelta(0), keep_last=1))
        shown.show(await history.encryption.encrypt())
        shown.show(*await history.operations(), await history.check(), await history.stats())
        shown.show(*await all_of(history))
    with shown.error(HistoryError):
        await store(keys=rings["one"])
    masters = [master(name) for name in names]
    assert len(drawn) >= 6, "the keys that were drawn are known"
    assert shown.forms_of([*masters, *drawn]) == []
    assert "asyncio" in shown.loggers(), "it is logged"
    logging.getLogger("async_history").debug("%s", drawn[-1].hex())
    assert shown.forms_of(drawn[-1:]) == ["hex"], "it is looked at"


async def lose_keys(history: Any, shown: Shown) -> None:
    """Show the errors of a key that is missing, and of a damaged one."""
    encryption = history.store.encryption
    for stored in await encryption.texts.in_transaction(lambda one: one.table.of_owners([""])):
        with shown.error(HistoryError):
            encryption.keys.unwrapped(stored._replace(wrapped=stored.wrapped[:-8] + "AAAAAAA="))
        with shown.error(Exception):
            encryption.keys.unwrapped(stored._replace(wrapping_key="other"))
