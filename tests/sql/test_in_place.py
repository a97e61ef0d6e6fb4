"""Encrypting, decrypting and replacing data keys in place, through SQLAlchemy.

The cases of all stores run on MariaDB in each run, and on SQLite and PostgreSQL with `--nightly`.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from async_history.sql import SqlHistoryManager
from tests.contract.test_decrypted import (
    test_all_is_decrypted_while_others_write,
    test_an_interrupted_one_is_completed_or_taken_back,
    test_keys_that_are_gone_seal_nothing,
    test_turned_on_again_it_has_new_keys,
    test_what_does_not_open_stops_it_and_all_else_stays,
    test_who_lacks_the_keys_can_not_turn_it_off,
)
from tests.contract.test_encryption_races import (
    test_a_decryption_stops_where_encryption_was_on_in_between,
    test_a_decryption_that_ends_while_another_opens,
    test_causes_are_found_once_it_was_turned_off_and_on,
    test_it_is_not_turned_on_by_who_has_the_keys_of_before,
    test_the_keys_of_an_erasure_that_began_meanwhile_stay,
    test_what_is_read_meanwhile_is_read_again,
)
from tests.contract.test_replaced_keys import (
    test_all_texts_are_under_new_keys_while_others_write,
    test_an_owners_keys_alone_are_replaced,
    test_not_while_encryption_is_turned_off,
)
from tests.contract.test_replaced_keys import (
    test_an_interrupted_one_is_completed as test_an_interrupted_replacement_is_completed,
)
from tests.support.encrypted_stores import Open

__all__ = [
    "test_a_decryption_stops_where_encryption_was_on_in_between",
    "test_a_decryption_that_ends_while_another_opens",
    "test_all_is_decrypted_while_others_write",
    "test_all_texts_are_under_new_keys_while_others_write",
    "test_an_interrupted_one_is_completed_or_taken_back",
    "test_an_interrupted_replacement_is_completed",
    "test_an_owners_keys_alone_are_replaced",
    "test_causes_are_found_once_it_was_turned_off_and_on",
    "test_it_is_not_turned_on_by_who_has_the_keys_of_before",
    "test_keys_that_are_gone_seal_nothing",
    "test_not_while_encryption_is_turned_off",
    "test_the_keys_of_an_erasure_that_began_meanwhile_stay",
    "test_turned_on_again_it_has_new_keys",
    "test_what_does_not_open_stops_it_and_all_else_stays",
    "test_what_is_read_meanwhile_is_read_again",
    "test_who_lacks_the_keys_can_not_turn_it_off",
]

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
