"""What the daemon logs: for people, for the journal, and what it says about its end."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shmd.cli.logs import Formatter
from tests.shell import TIMEOUT_S, Shell

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shmd.testing import DaemonProcess, StartDaemon

ROOT = Path(__file__).parent.parent


def record(level: int, message: str, *, name: str = "shmd.daemon", error: Exception | None = None) -> logging.LogRecord:
    exc_info = (type(error), error, error.__traceback__) if error else None
    return logging.LogRecord(name, level, "file.py", 1, message, (), exc_info)


class TestFormatter:
    @pytest.mark.parametrize(
        ("level", "priority"),
        [(logging.DEBUG, 7), (logging.INFO, 6), (logging.WARNING, 4), (logging.ERROR, 3), (logging.CRITICAL, 2)],
    )
    def test_journal_is_told_the_priority(self, level: int, priority: int) -> None:
        assert Formatter(journal=True).format(record(level, "so")) == f"<{priority}>so"
        assert Formatter(journal=False).format(record(level, "so")) == "shmd: so"

    def test_message_is_one_line_that_no_terminal_obeys(self) -> None:
        assert Formatter(journal=True).format(record(logging.INFO, "a\n<0>b\x1b[2J")) == r"<6>a\n<0>b\x1b[2J"

    def test_traceback_has_the_priority_on_each_line(self) -> None:
        lines = Formatter(journal=True).format(record(logging.ERROR, "oh", error=ValueError("\x1b[2J\nno"))).split("\n")
        assert lines[0] == "<3>oh"
        assert len(lines) > 2
        assert all(line.startswith("<3>") and line.isprintable() for line in lines)

    def test_messages_of_others_keep_their_lines(self) -> None:
        assert Formatter(journal=True).format(record(logging.ERROR, "a\nb", name="asyncio")) == "<3>a\n<3>b"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log"
    path.touch()
    return path


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(str(tmp_path / "run" / "control.sock"))
    yield shell
    shell.close()


def serve(shell: Shell, log: Path, **environment: str) -> subprocess.Popen[bytes]:
    """A daemon that logs there, listening when this returns."""
    with log.open("wb") as file:
        arguments = ("serve", "--ephemeral", "--runtime-dir", str(Path(shell.socket_path).parent))
        shell.environment = environment
        daemon = shell.start(*arguments, stderr=file)
        shell.environment = {}
    shell.run("pub", "t", "--wait")
    return daemon


def stream(path: Path) -> str:
    """What $JOURNAL_STREAM is for somebody whose standard error is this file."""
    found = path.stat()
    return f"{found.st_dev}:{found.st_ino}"


class TestDaemon:
    def test_it_says_which_signal_ended_it_and_what_goes(self, shell: Shell, log: Path) -> None:
        daemon = serve(shell, log)
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(TIMEOUT_S) == 0
        assert log.read_text().splitlines()[-1] == "shmd: stopping: it got SIGTERM; 1 topics and 0 segments go with it"

    def test_it_says_who_stopped_it_and_what_stays(self, shmd_start: StartDaemon) -> None:
        daemon = shmd_start(ephemeral=False)
        shell = Shell(daemon.socket_path)
        shell.run("pub", "t")
        shell.run("segment", "create", "s", "--size", "1")
        stop = shell.start("stop")
        assert stop.wait(TIMEOUT_S) == 0
        shell.close()
        assert daemon.process.wait(TIMEOUT_S) == 0
        (said,) = [line for line in daemon.log.splitlines() if line.startswith("shmd: stopping: ")]
        assert f"(pid {stop.pid}, uid {os.geteuid()}) asked for it; 1 topics and 1 segments stay for the next" in said
        daemon.stop()

    def test_hangup_is_logged_and_changes_nothing(self, shell: Shell, log: Path) -> None:
        daemon = serve(shell, log)
        daemon.send_signal(signal.SIGHUP)
        assert [topic["name"] for topic in map(json.loads, shell.run("ls", "--json").splitlines())] == ["t"]
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(TIMEOUT_S) == 0
        assert "shmd: SIGHUP ignored: restart to read the configuration" in log.read_text().splitlines()

    def test_signals_that_it_was_started_without_stay_ignored(self, shell: Shell, log: Path) -> None:
        """As nohup does, and a shell for Ctrl-C of what runs in the background."""
        ignore = "trap '' HUP INT; exec \"$@\""
        with log.open("wb") as file:
            command = [sys.executable, "-m", "shmd", "serve", "--ephemeral"]
            daemon = subprocess.Popen(
                ["sh", "-c", ignore, "sh", *command, "--runtime-dir", str(Path(shell.socket_path).parent)], stderr=file
            )
        shell.run("pub", "t", "--wait")
        daemon.send_signal(signal.SIGHUP)
        daemon.send_signal(signal.SIGINT)
        shell.run("ls")
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(TIMEOUT_S) == 0
        assert "SIGHUP" not in log.read_text()
        assert "it got SIGTERM" in log.read_text()

    def test_journal_gets_priorities_and_others_do_not(self, shell: Shell, log: Path) -> None:
        for environment, prefix in ({"JOURNAL_STREAM": stream(log)}, "<6>"), ({"JOURNAL_STREAM": "1:2"}, "shmd: "):
            daemon = serve(shell, log, **environment)
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait(TIMEOUT_S) == 0
            assert all(line.startswith(prefix) for line in log.read_text().splitlines())
            assert f"{prefix}listening on {shell.socket_path}" in log.read_text()


def test_daemon_that_does_not_start_is_an_error_to_the_journal(shell: Shell, log: Path) -> None:
    (log.parent / "shmd.toml").write_text("clients = 5")
    shell.environment = {"JOURNAL_STREAM": stream(log)}
    with log.open("wb") as file:
        daemon = shell.start("serve", "--config", str(log.parent / "shmd.toml"), stderr=file)
    assert daemon.wait(TIMEOUT_S) == 1
    assert log.read_text().startswith("<3>")
    assert log.read_text().count("\n") == 1


@pytest.mark.parametrize("unit", ["shmd.service", "user/shmd.service"])
def test_units_log_under_the_daemons_name(unit: str) -> None:
    assert "\nSyslogIdentifier=shmd\n" in (ROOT / "systemd" / unit).read_text()


def test_command_prefixes_what_the_package_logs(shmd_daemon: DaemonProcess) -> None:
    shell = Shell(shmd_daemon.socket_path)
    sub = shell.start("sub", "t")
    shell.publish("t", 1, options=("--wait-subscribers", "1"))
    shmd_daemon.stop()
    assert sub.stderr is not None
    said = sub.stderr.readline()
    shell.close()
    assert said.startswith(b"shmd: the daemon is gone")
