"""The recipes of docs/forking.md, as they stand there, under a real gunicorn that imports before it forks."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.shell import TIMEOUT_S, Shell, parse_lines

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shmd.testing import DaemonProcess

ROOT = Path(__file__).parent.parent
RECIPES = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "forking.md").read_text(), re.S)
WITH_LIFESPAN = """
import os
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

async def work(request):
    async with {client}.publisher("requests") as publisher:
        await publisher.publish(os.getpid())
    return PlainTextResponse(str(os.getpid()))

app = Starlette(routes=[Route("/", work)]{lifespan})
"""
PROGRAMS = {
    "lifespan": RECIPES[1] + WITH_LIFESPAN.format(client="request.app.state.shmd", lifespan=", lifespan=lifespan"),
    "first request": RECIPES[2] + WITH_LIFESPAN.format(client="(await get_client())", lifespan=""),
}
WORKERS = 2

for module in ("gunicorn", "starlette", "uvicorn_worker"):
    pytest.importorskip(module, reason=f"{module} is not installed")


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(os.fspath(self._path))


def ask(path: Path) -> int:
    """The pid of the worker that answered."""
    connection = _UnixConnection(path)
    try:
        connection.request("GET", "/")
        response = connection.getresponse()
        body = response.read().decode()
        assert response.status == 200, body
        return int(body)
    finally:
        connection.close()


def listens(path: Path) -> bool:
    """That its socket exists is not enough: it is bound before it listens."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(os.fspath(path)) == 0


@pytest.fixture(params=PROGRAMS)
def server(request: pytest.FixtureRequest, tmp_path: Path, shmd_daemon: DaemonProcess) -> Iterator[Path]:
    """A gunicorn whose master has imported the program; the socket it answers at."""
    (tmp_path / "program.py").write_text(PROGRAMS[request.param])
    path = shmd_daemon.runtime_dir / "http.sock"
    command = [sys.executable, "-m", "gunicorn", "--preload", "--workers", str(WORKERS), "--bind", f"unix:{path}"]
    command += ["--worker-class", "uvicorn_worker.UvicornWorker", "--worker-tmp-dir", str(tmp_path)]
    command += ["--no-control-socket", "--graceful-timeout", "1", "--log-level", "warning", "program:app"]
    environment = os.environ | {"SHMD_SOCKET": shmd_daemon.socket_path, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE) as master:
        try:
            while not listens(path):
                assert master.poll() is None, master.communicate()[1].decode()
            yield path
        finally:
            master.send_signal(signal.SIGTERM)
            _, errors = master.communicate(timeout=TIMEOUT_S)
    assert b"Traceback" not in errors, errors.decode()
    path.unlink(missing_ok=True)


def test_workers_of_a_preloading_gunicorn_connect_after_the_fork(server: Path, shell: Shell) -> None:
    pids: list[int] = []
    while len(set(pids)) < WORKERS:
        pids.append(ask(server))
    published = parse_lines(shell.run("sub", "requests", "--start", "all", "--count", str(len(pids))))
    assert published == pids
