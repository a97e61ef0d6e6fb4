"""Encrypting, decrypting and replacing data keys in place, through SQLAlchemy.

The cases of all stores run on MariaDB in each run, and on SQLite and PostgreSQL with `--nightly`.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from async_history.sql import SqlHistoryManager
from tests.contract.decryption_cases import DecryptionCases
from tests.contract.encryption_race_cases import EncryptionRaceCases
from tests.contract.erased_key_cases import ErasedKeyCases
from tests.contract.look_alike_cases import LookAlikeCases
from tests.contract.moved_key_cases import MovedKeyCases
from tests.contract.replaced_key_cases import ReplacedKeyCases
from tests.support.encrypted_stores import Open

pytestmark = pytest.mark.once


@pytest.fixture(
    params=[
        pytest.param("mariadb", marks=pytest.mark.mariadb),
        pytest.param("sqlite", marks=pytest.mark.nightly),
        pytest.param("postgres", marks=[pytest.mark.postgres, pytest.mark.nightly]),
    ]
)
def open_store(
    request: pytest.FixtureRequest, tmp_path: Path, engines: Callable[[str], AsyncEngine]
) -> Open:
    if request.param == "sqlite":
        file = f"sqlite+aiosqlite:///{tmp_path / 'history.db'}"
        engine = engines(file)
        return lambda **options: SqlHistoryManager(engine=engine, **options)
    if request.param == "postgres":
        new_schema: Callable[[], str] = request.getfixturevalue("new_schema")
        postgres: str = request.getfixturevalue("postgres")
        plain = make_url(postgres).set(drivername="postgresql+asyncpg")
        schema = str(make_url(new_schema()).query["schema"])
        return lambda **options: SqlHistoryManager(plain, schema=schema, **options)
    new_database: Callable[[], URL] = request.getfixturevalue("new_database")
    url = new_database()
    return lambda **options: SqlHistoryManager(url, **options)


class TestDecryption(DecryptionCases): ...


class TestEncryptionRaces(EncryptionRaceCases): ...


class TestLookAlikes(LookAlikeCases): ...


class TestReplacedKeys(ReplacedKeyCases): ...


class TestMovedKeys(MovedKeyCases): ...


class TestErasedKeys(ErasedKeyCases): ...
