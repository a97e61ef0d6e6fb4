"""What the tests of mem0 need."""

from pathlib import Path

import pytest
import trustme


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of one certificate."""
    file = tmp_path_factory.mktemp("certificates") / "one.pem"
    trustme.CA().cert_pem.write_to_path(str(file))
    return file


@pytest.fixture
def one_certificate(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have clients of HTTPS know one certificate: to read the system's takes four fifths of the
    time in which a Memory is made."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
