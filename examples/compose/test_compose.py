"""Whether the files of this folder are consistent and name existing programs, without Docker."""

import json
import re
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import typer.main
import yaml

from async_history import open_history
from async_history.cli.app import app
from async_history.postgres import PostgresHistoryManager

pytestmark = pytest.mark.once

FOLDER = Path(__file__).parent
REPOSITORY = FOLDER.parents[1]


def read(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


COMPOSE = read("compose.yaml")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def option(service: str, name: str) -> str:
    command: list[str] = SERVICES[service]["command"]
    return command[command.index(name) + 1]


def test_the_page_s_command_is_one_of_ours() -> None:
    program, name, *arguments = SERVICES["page"]["command"]
    assert program == "async-history"
    group: Any = typer.main.get_command(app)
    context = group.commands[name].make_context(name, arguments)
    assert context.params["host"] == "0.0.0.0"  # noqa: S104 - in a container
    assert context.params["write"] is False
    (secret,) = SERVICES["page"]["secrets"]
    assert context.params["token_file"] == f"/run/secrets/{secret}"
    assert COMPOSE["secrets"][secret] == {"environment": "PAGE_TOKEN"}
    (published,) = SERVICES["page"]["ports"]
    assert published.rpartition(":")[2] == str(context.params["port"])


@pytest.mark.subprocess
def test_the_service_s_command_is_the_example_s() -> None:
    python, *command = SERVICES["service"]["command"]
    assert python == "python"
    ran = subprocess.run(  # noqa: S603
        [sys.executable, *command, "--help"],
        cwd=FOLDER.parent / "fastapi_service",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    assert {one for one in command if one.startswith("--")} <= set(re.findall(r"--\w+", ran.stdout))


def test_images_have_a_version() -> None:
    named = [one["image"] for one in SERVICES.values() if "build" not in one]
    dockerfile = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
    named += re.findall(r"(?m)^FROM (\S+)", dockerfile)
    assert len(named) == 4
    for image in named:
        assert re.fullmatch(r"[\w/]+:v?\d[\w.-]*", image), image
    (python,) = re.findall(r"(?m)^FROM python:(\d+\.\d+)", dockerfile)
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"Programming Language :: Python :: {python}" in project["classifiers"]


def test_both_open_the_server_s_history() -> None:
    postgres = SERVICES["postgres"]["environment"]
    for service in ("service", "page"):
        url = option(service, "--db")
        assert isinstance(open_history(url), PostgresHistoryManager)
        assert url == f"postgresql://{postgres['POSTGRES_USER']}@postgres/history"
        given = SERVICES[service]["environment"]["PGPASSWORD"]
        assert given == postgres["POSTGRES_PASSWORD"]


def test_what_a_service_needs_is_healthy_first() -> None:
    needs = {name: list(one.get("depends_on", {})) for name, one in SERVICES.items()}
    assert needs == {
        "postgres": [],
        "service": ["postgres"],
        "page": ["service"],
        "prometheus": [],
        "grafana": ["prometheus"],
    }
    for service in SERVICES.values():
        assert service["healthcheck"]["test"][0] == "CMD"
        for needed in service.get("depends_on", {}).values():
            assert needed == {"condition": "service_healthy"}


@contextmanager
def answering(status: int) -> Iterator[int]:
    """Answer /health with a status; yield the port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        serving = Thread(target=server.serve_forever)
        serving.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            serving.join()


def check(service: str, port: int) -> bool:
    """Run a service's health check against a port; return whether it passes."""
    command: list[str] = SERVICES[service]["healthcheck"]["test"]
    assert command[:3] == ["CMD", "python", "-c"]
    (published,) = SERVICES[service]["ports"]
    own = published.rpartition(":")[2]
    assert own in command[3]
    program = command[3].replace(own, str(port))
    ran = subprocess.run(  # noqa: S603
        [sys.executable, "-c", program], capture_output=True, timeout=120
    )
    return ran.returncode == 0


@pytest.mark.subprocess
def test_health_checks_see_what_fails() -> None:
    with answering(200) as port:
        assert check("service", port)
        assert check("page", port)
    with answering(503) as port:
        assert not check("service", port)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and does not listen
        assert not check("page", unused.getsockname()[1])


def test_only_this_computer_is_answered() -> None:
    published = [port for one in SERVICES.values() for port in one.get("ports", ())]
    assert len(published) == 3
    for port in published:
        assert re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port)


def test_prometheus_and_grafana_find_what_they_show() -> None:
    (job,) = read("prometheus.yml")["scrape_configs"]
    (service,) = job["static_configs"]
    assert service["targets"] == ["service:8000"]
    assert SERVICES["service"]["ports"] == ["127.0.0.1:8000:8000"]
    (source,) = read("grafana/datasources.yml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = read("grafana/dashboards.yml")["providers"]
    mounts = dict(mount.split(":")[:2] for mount in SERVICES["grafana"]["volumes"])
    (dashboards,) = [
        local for local, inside in mounts.items() if inside == provider["options"]["path"]
    ]
    (variable, *_) = json.loads(next((FOLDER / dashboards).glob("*.json")).read_text())[
        "templating"
    ]["list"]
    assert (variable["type"], variable["query"]) == ("datasource", source["type"])


def test_every_file_and_secret_that_is_named_is_there() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or (FOLDER / source).exists(), source
    text = (FOLDER / "compose.yaml").read_text(encoding="utf-8")
    asked = {*re.findall(r"\$\{(\w+):\?", text), "PAGE_TOKEN"}
    example = (FOLDER / ".env.example").read_text(encoding="utf-8")
    assert set(re.findall(r"(?m)^(\w+)=$", example)) == asked
    assert "$" not in re.sub(r"\$\{\w+:\?", "", text), "a secret without its check"


def test_the_image_has_what_the_commands_need() -> None:
    dockerfile = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
    found = re.search(r'"/source\[([\w,]+)\]"', dockerfile)
    assert found is not None
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = set(found[1].split(","))
    assert {"cli", "fastapi", "otel", "web"} == extras <= set(project["optional-dependencies"])
    ignored, *kept = (FOLDER / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    assert ignored == "*"
    paths = [line.removeprefix("!") for line in kept]
    assert all((REPOSITORY / path).exists() for path in paths)
    built = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    needed = built["hatch"]["build"]["targets"]["wheel"]["only-include"]
    assert {*needed, project["readme"], *project["license-files"]} <= set(paths)
