"""Parameters of a database's URL: TLS, unknown parameters, and secrets."""

import json
import ssl
import traceback
from pathlib import Path
from urllib.parse import quote

import pytest
import trustme
from sqlalchemy.engine import make_url

from async_history import InvalidInput, StorageError, open_history
from async_history._sql.connecting.url import driver_url
from async_history._sql.manager import sql_url

pytestmark = pytest.mark.once

CERTIFIED = {"verify_mode": ssl.CERT_REQUIRED, "check_hostname": True}
ENCRYPTED = {"verify_mode": ssl.CERT_NONE, "check_hostname": False}


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("", None),
        ("charset=utf8mb4&ssl_ca=/ca.pem", None),  # SQLAlchemy's own way
        ("ssl-mode=DISABLED", None),
        ("ssl-mode=REQUIRED", ENCRYPTED),  # Aiven, DigitalOcean
        ("sslmode=require&charset=utf8mb4", ENCRYPTED),  # Azure
        ("ssl_mode=VERIFY_CA", {**CERTIFIED, "check_hostname": False}),
        ("ssl-mode=VERIFY_IDENTITY", CERTIFIED),
        ("sslMode=verify-full", CERTIFIED),
        ("sslaccept=strict", CERTIFIED),  # Prisma, PlanetScale
        ("sslaccept=accept_invalid_certs", ENCRYPTED),
        ("ssl=true", ENCRYPTED),
        (f"ssl={quote(json.dumps({'rejectUnauthorized': True}))}", CERTIFIED),  # PlanetScale
        (
            f"ssl={quote(json.dumps({'minVersion': 'TLSv1.2', 'rejectUnauthorized': True}))}",
            CERTIFIED,  # TiDB Cloud
        ),
        (f"ssl={quote(json.dumps({'rejectUnauthorized': False}))}", ENCRYPTED),
    ],
)
def test_tls_in_the_parameters_of_mysqls_tools(
    query: str, wanted: dict[str, object] | None
) -> None:
    url, arguments = driver_url(sql_url(f"mysql://u:p@host/db?{query}"))
    if wanted is None:
        assert not arguments
    else:
        assert {name: getattr(arguments["ssl"], name) for name in wanted} == wanted
    assert set(url.query) <= {"charset", "ssl_ca"}
    assert url.query.get("charset") == make_url(f"mysql://h/?{query}").query.get("charset")


def test_tls_with_the_users_own_authority(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    asked = f"mysql://u:p@host/db?ssl-mode=VERIFY_IDENTITY&ssl_ca={tmp_path}/ca.pem"
    url, arguments = driver_url(sql_url(asked))
    assert not url.query
    assert len(arguments["ssl"].get_ca_certs()) == 1


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("ssl-mode=PREFERRED", "ssl-mode must be"),
        ("ssl-mode=s3cret", "ssl-mode must be"),
        ("ssl-mode=REQUIRED&ssl-mode=DISABLED", "ssl-mode must be"),
        ("ssl-mode=REQUIRED&ssl=true", "ssl-mode and ssl"),
        ("ssl-mode=REQUIRED&ssl_cipher=s3cret", "both ssl-mode and ssl_cipher"),
        ("ssl-mode=DISABLED&ssl_ca=/s3cret", "both ssl-mode and ssl_ca"),
        ("ssl-mode=VERIFY_CA&ssl_ca=/s3cret", "ssl_ca"),
        ("ssl-mode=VERIFY_CA&ssl_ca=a&ssl_ca=b", "ssl_ca"),
        (f"ssl={quote(json.dumps({'ca': 's3cret'}))}", "rejectUnauthorized"),
        (f"ssl={quote(json.dumps({'minVersion': 'TLSv1.3'}))}", "minVersion"),
        ("ssl={s3cret", "JSON"),
    ],
)
def test_tls_that_is_not_available_is_refused_by_name(query: str, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason) as refused:
        open_history(f"mysql://u:s3cret@host/db?{query}")
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("rest", "reason"),
    [
        ("1/db?unknown=s3cret", "unknown"),
        ("1/db?charset=utf8mb4&sslca=s3cret", "sslca as"),
        ("1/db?charset=utf8mb4&connect_timeout=s3cret", "charset or connect_timeout"),
        ("99999/db", "65535"),
    ],
)
async def test_parameters_that_the_driver_does_not_take_are_refused_by_name(
    rest: str, reason: str
) -> None:
    with pytest.raises(InvalidInput, match=reason) as refused:
        await open_history(f"mysql://u:p@127.0.0.1:{rest}")
    message = "".join(traceback.format_exception(refused.value))
    assert "s3cret" not in message


async def test_no_parameter_that_may_be_secret_is_shown() -> None:
    history = open_history("mysql://u:s3cret@127.0.0.1:1/db?password=s3cret&unix_socket=/none")
    with pytest.raises(StorageError, match="unix_socket") as failed:
        await history
    assert "s3cret" not in f"{failed.value}{history!r}"
