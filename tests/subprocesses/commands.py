"""Runs the command in processes without starting an interpreter for each.

A server has imported the command and forks for each call, which saves half a second of imports. A
call has its own standard streams, folder and environment, and ends as a program does. Tests of
signals, terminals and the start itself use `COMMAND` instead.

    python -m tests.subprocesses.commands FD

The server reads calls from a socket and ends with it.
"""

import atexit
import gc
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from functools import cache
from io import TextIOWrapper
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from typer.testing import CliRunner

import async_history._sqlite.manager  # noqa: F401 - before the first call
from async_history.cli import main as run
from async_history.cli.app import app
from tests.subprocesses.processes import ROOT, command
from tests.support.patience import LONG_S

COMMAND = [sys.executable, "-W", "error", "-m", "async_history.cli"]

Result = subprocess.CompletedProcess[str]

_ERRORS = ("strict", "strict", "backslashreplace")
"""The error handlers of an interpreter's three standard streams."""


def run_command(
    arguments: list[str], folder: Path, env: Mapping[str, str], stdin: bytes = b""
) -> Result:
    """Run the command in a folder until it ends."""
    reading, writing = os.pipe()
    with TemporaryFile() as out, TemporaryFile() as err:
        feeding = threading.Thread(target=_feed, args=(writing, stdin))
        feeding.start()
        try:
            call = {"arguments": arguments, "folder": str(folder), "env": dict(env)}
            status = _call(call, [reading, out.fileno(), err.fileno()])
        finally:
            os.close(reading)
            feeding.join()
        out.seek(0)
        err.seek(0)
        said, complained = out.read(), err.read()
    assert b"Traceback" not in complained, complained.decode()
    return Result(arguments, status, said.decode(), complained.decode(errors="replace"))


def _feed(pipe: int, content: bytes) -> None:
    try:
        with open(pipe, "wb") as file:
            file.write(content)
    except BrokenPipeError:  # the command ended without reading everything
        pass


def _call(call: object, files: list[int]) -> int:
    line = json.dumps(call).encode() + b"\n"
    server = _server()
    socket.send_fds(server, [line[:1]], files)
    server.sendall(line[1:])
    answer = server.recv(100)
    assert answer, "the server of commands has ended"
    return int(answer)


@cache
def _server() -> socket.socket:
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            command("commands", theirs.fileno()), pass_fds=[theirs.fileno()], cwd=ROOT
        )
    ours.settimeout(LONG_S)

    def end() -> None:
        ours.close()
        process.wait(timeout=LONG_S)

    atexit.register(end)
    return ours


def _serve(calls: socket.socket) -> None:
    """Fork for each call, and answer with its status; return in the forked process."""
    while True:
        line, files, _, _ = socket.recv_fds(calls, 1, 3)
        if not line:
            sys.exit()
        while not line.endswith(b"\n"):
            line += calls.recv(1 << 16)
        pid = os.fork()
        if not pid:
            calls.close()
            _become(json.loads(line), files)
            return
        for file in files:
            os.close(file)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        calls.sendall(b"%d" % status)


def _become(call: dict[str, Any], files: list[int]) -> None:
    """Set up what a new interpreter gets from its parent."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(call["folder"])
    os.environ.clear()
    os.environ.update(call["env"])
    encoding = os.environ.get("PYTHONIOENCODING", "utf-8")
    for stream, errors in zip((sys.stdin, sys.stdout, sys.stderr), _ERRORS, strict=True):
        assert isinstance(stream, TextIOWrapper)
        stream.reconfigure(encoding=encoding, errors=errors)
    sys.argv[1:] = call["arguments"]


def main() -> None:
    """Serve calls until the socket is closed; in a forked process, run the command."""
    # Typer imports pydantic with the first arguments, and Rich with the first error.
    refused = CliRunner().invoke(app, ["no such command"])
    assert refused.exit_code == 2, refused.output
    gc.freeze()
    _serve(socket.socket(fileno=int(sys.argv[1])))
    run()


if __name__ == "__main__":
    main()
