"""The service manager's side, played for real: notify sockets, inherited descriptors, and the unit files."""

from __future__ import annotations

import configparser
import fcntl
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shmd import limits, systemd
from shmd.errors import ConfigError
from tests.children import in_child

if TYPE_CHECKING:
    from collections.abc import Iterator

UNITS = Path(__file__).parent.parent / "systemd"
SERVICES = [UNITS / "shmd.service", UNITS / "user" / "shmd.service"]
MESSAGE_BYTES = 4096


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """A service manager's notify socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(os.fspath(tmp_path / "notify"))
        yield manager


@pytest.fixture
def environ(manager: socket.socket) -> dict[str, str]:
    return {"NOTIFY_SOCKET": manager.getsockname()}


class TestNotify:
    def test_states_arrive_in_one_message(self, manager: socket.socket, environ: dict[str, str]) -> None:
        assert systemd.notify(systemd.READY, systemd.status("listening"), systemd.main_pid(5), environ=environ)
        assert manager.recv(MESSAGE_BYTES) == b"READY=1\nSTATUS=listening\nMAINPID=5"

    def test_abstract_socket_is_reached(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind("")  # the kernel chooses an abstract name
            name = manager.getsockname().decode()
            assert systemd.notify(systemd.STOPPING, environ={"NOTIFY_SOCKET": "@" + name[1:]})
            assert manager.recv(MESSAGE_BYTES) == b"STOPPING=1"

    def test_status_is_one_line(self) -> None:
        assert systemd.status("fine\nMAINPID=1") == "STATUS=fine"

    @pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}])
    def test_without_a_manager_nothing_happens(self, environ: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
        assert not systemd.notify(systemd.READY, environ=environ)
        assert caplog.records == []

    def test_manager_that_is_gone_is_logged_not_raised(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        assert not systemd.notify(systemd.READY, environ={"NOTIFY_SOCKET": str(tmp_path / "gone")})
        assert [record.levelno for record in caplog.records] == [logging.WARNING]

    def test_stored_descriptors_arrive_with_their_name(self, manager: socket.socket, environ: dict[str, str]) -> None:
        reader, writer = os.pipe()
        assert systemd.store_descriptors("bells-prices", [reader, writer], environ)
        message, fds, _, _ = socket.recv_fds(manager, MESSAGE_BYTES, 4)
        assert message == b"FDSTORE=1\nFDNAME=bells-prices"
        assert [os.path.sameopenfile(*both) for both in zip(fds, (reader, writer), strict=True)] == [True, True]
        assert systemd.remove_descriptors("bells-prices", environ)
        assert manager.recv(MESSAGE_BYTES) == b"FDSTOREREMOVE=1\nFDNAME=bells-prices"
        for fd in (*fds, reader, writer):
            os.close(fd)

    @pytest.mark.parametrize("name", ["", "a:b", "ä", "a\nMAINPID=1", "x" * 256])
    def test_name_that_the_manager_would_not_take_is_refused(self, environ: dict[str, str], name: str) -> None:
        with pytest.raises(ConfigError, match="name"):
            systemd.store_descriptors(name, [0], environ)


class TestInheritedDescriptors:
    def inherit(self, count: int, **variables: str) -> tuple[list[tuple[int, str, bool]], dict[str, str]]:
        """(fd, name, close-on-exec) of each, and the variables left over, in a child that was handed pipes."""

        def child() -> tuple[list[tuple[int, str, bool]], dict[str, str]]:
            spare, _ = os.pipe()
            for fd in range(3, 3 + count):
                os.dup2(spare, fd)
            environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(count), **variables}
            found = systemd.inherited_descriptors(environ)
            cloexec = [bool(fcntl.fcntl(each.fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC) for each in found]
            return [(each.fd, each.name, flag) for each, flag in zip(found, cloexec, strict=True)], environ

        return in_child(child)

    def test_service_gets_descriptors_by_name_once_and_keeps_them_from_its_children(self) -> None:
        found, left = self.inherit(2, LISTEN_FDNAMES="control:bells", OTHER="1")
        assert found == [(3, "control", True), (4, "bells", True)]
        assert left == {"OTHER": "1"}

    def test_descriptors_without_names_are_unknown(self) -> None:
        assert self.inherit(1)[0] == [(3, "unknown", True)]

    def test_variables_meant_for_another_process_are_ignored_and_removed(self) -> None:
        environ = {"LISTEN_PID": str(os.getpid() + 1), "LISTEN_FDS": "1"}
        assert systemd.inherited_descriptors(environ) == []
        assert environ == {}

    @pytest.mark.parametrize("environ", [{}, {"LISTEN_FDS": "1"}, {"LISTEN_PID": "1"}])
    def test_without_a_manager_there_are_none(self, environ: dict[str, str]) -> None:
        assert systemd.inherited_descriptors(environ) == []

    @pytest.mark.parametrize(
        ("variables", "complaint"),
        [
            ({"LISTEN_FDS": "many"}, "LISTEN_FDS is 'many'"),
            ({"LISTEN_FDS": "-1"}, "LISTEN_FDS"),
            ({"LISTEN_FDS": "9" * 40}, "LISTEN_FDS"),
            ({"LISTEN_PID": "me"}, "LISTEN_PID"),
            ({"LISTEN_FDS": "1", "LISTEN_FDNAMES": "a:b"}, "2 names for 1 descriptors"),
            ({"LISTEN_FDS": "1000"}, "not open"),
        ],
    )
    def test_variables_that_make_no_sense_are_named(self, variables: dict[str, str], complaint: str) -> None:
        environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "0", **variables}
        with pytest.raises(ConfigError, match=complaint):
            systemd.inherited_descriptors(environ)


class TestWatchdog:
    def test_interval_is_half_of_what_the_manager_tolerates(self) -> None:
        assert systemd.watchdog_interval_s({"WATCHDOG_USEC": "30000000"}) == 15.0
        assert systemd.watchdog_interval_s({"WATCHDOG_USEC": "3", "WATCHDOG_PID": str(os.getpid())}) == 1.5e-6

    @pytest.mark.parametrize("environ", [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "5", "WATCHDOG_PID": "1"}])
    def test_no_watchdog_no_interval(self, environ: dict[str, str]) -> None:
        assert systemd.watchdog_interval_s(environ) is None

    def test_interval_that_makes_no_sense_is_named(self) -> None:
        with pytest.raises(ConfigError, match="WATCHDOG_USEC"):
            systemd.watchdog_interval_s({"WATCHDOG_USEC": "soon"})


class TestUnits:
    @pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
    @pytest.mark.parametrize("directory", [UNITS, UNITS / "user"], ids=["system", "user"])
    def test_systemd_accepts_the_units(self, directory: Path, tmp_path: Path) -> None:
        done = subprocess.run(
            [
                "systemd-analyze",
                "verify",
                f"--{'user' if directory.name == 'user' else 'system'}",
                *(str(directory / unit) for unit in ("shmd.service", "shmd.socket")),
            ],
            env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, "")

    @pytest.mark.parametrize("service", SERVICES, ids=["system", "user"])
    def test_no_unit_cuts_the_daemon_off_from_its_clients(self, service: Path) -> None:
        settings = parse(service)
        cut_off = {"PrivateIPC", "PrivateUsers", "DynamicUser", "ProcSubset", "IPCNamespacePath", "JoinsNamespaceOf"}
        assert cut_off & settings.keys() == set()
        assert settings["RuntimeDirectoryPreserve"] == "yes"
        assert settings["StateDirectory"] == "shmd"
        assert settings["StartLimitIntervalSec"] == "0"
        assert settings["Type"] == "notify"
        assert int(settings["FileDescriptorStoreMax"]) == limits.STORED_DESCRIPTORS_MAX

    def test_system_unit_keeps_segments_over_restarts(self) -> None:
        settings = parse(UNITS / "shmd.service")
        assert settings["RemoveIPC"] == "no"
        assert settings["User"] == settings["Group"] == "shmd"
        assert "u shmd " in (UNITS / "shmd.sysusers").read_text()

    @pytest.mark.parametrize(
        ("unit", "path"), [("shmd.socket", "/run/shmd/control.sock"), ("user/shmd.socket", "%t/shmd/control.sock")]
    )
    def test_sockets_are_where_clients_look(self, unit: str, path: str) -> None:
        assert parse(UNITS / unit)["ListenSequentialPacket"] == path


class TestDaemon:
    """A real daemon under a manager played by this test."""

    def test_daemon_tells_its_manager_how_it_is(self, tmp_path: Path, manager: socket.socket) -> None:
        command = [sys.executable, "-m", "shmd", "serve", "--runtime-dir", str(tmp_path / "run")]
        environ = {**os.environ, "NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "20000"}
        with started(command, environ) as daemon:
            ready = manager.recv(MESSAGE_BYTES).decode()
            assert ready.splitlines() == ["READY=1", f"STATUS=listening on {tmp_path / 'run' / 'control.sock'}"]
            assert [manager.recv(MESSAGE_BYTES) for _ in range(3)] == [b"WATCHDOG=1"] * 3
            daemon.send_signal(signal.SIGTERM)
            while (last := manager.recv(MESSAGE_BYTES)) == b"WATCHDOG=1":
                continue
            assert last == b"STOPPING=1"
            assert daemon.wait() == 0

    @pytest.mark.skipif(shutil.which("systemd-socket-activate") is None, reason="needs systemd-socket-activate")
    def test_daemon_serves_on_the_socket_that_it_was_started_for(self, tmp_path: Path, manager: socket.socket) -> None:
        path = tmp_path / "control.sock"
        command = [
            *("systemd-socket-activate", "--seqpacket", f"--listen={path}", "--fdname=control"),
            *(f"--setenv={name}" for name in ("NOTIFY_SOCKET", "PYTHONPATH") if name in {*os.environ, "NOTIFY_SOCKET"}),
            *(sys.executable, "-m", "shmd", "serve", "--runtime-dir", str(tmp_path / "run")),
        ]
        environ = {**os.environ, "NOTIFY_SOCKET": manager.getsockname()}
        with started(command, environ) as daemon:
            assert daemon.stderr is not None
            assert daemon.stderr.readline().startswith(b"Listening on")
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
                client.connect(os.fspath(path))
                ready = manager.recv(MESSAGE_BYTES).decode()
                assert f"STATUS=listening on {path}" in ready.splitlines()
                client.send(b"\x01")
                assert client.recv(MESSAGE_BYTES)  # an answer, if only that this is no message
            daemon.send_signal(signal.SIGTERM)
            daemon.stderr.read()
            assert daemon.wait() == 0
        assert path.is_socket()  # it is the manager's


@contextmanager
def started(command: list[str], environ: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """The process, killed at the end if it is still there."""
    with subprocess.Popen(command, env=environ, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def parse(unit: Path) -> dict[str, str]:
    """All settings of a unit file, of all its sections."""
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters="=", comment_prefixes="#")
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(unit)
    return {name: value for section in parser.sections() for name, value in parser[section].items()}
