"""The command line as its users meet it: real processes and pipes, exit statuses, and words on standard error."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import struct
import time
from typing import TYPE_CHECKING, Any

import click
import pytest

from shmd.cli import cli
from shmd.cli.group import Commands
from tests.shell import TIMEOUT_S, Shell, json_lines, parse_lines

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from shmd.testing import DaemonProcess, StartDaemon


FULL_S = 1.0
"""A pipe that takes nothing for so long is not being read."""
WHOLE_LINES = b'"%s"\n' % (b"x" * 200) * 20
"""Within PIPE_BUF: a pipe takes all of it or nothing."""


def frame(payload: bytes) -> bytes:
    return struct.pack("<I", len(payload)) + payload


def read_line(process: subprocess.Popen[bytes]) -> Any:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def write_line(process: subprocess.Popen[bytes], value: object) -> None:
    assert process.stdin is not None
    process.stdin.write(json_lines([value]))
    process.stdin.flush()


def end(process: subprocess.Popen[bytes], number: int) -> tuple[int, bytes]:
    """Send a signal: the exit status, and what was written to standard error."""
    process.send_signal(number)
    _, errors = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, errors


def fill(fd: int) -> None:
    """Write lines into a pipe until it takes no more: whoever reads it has stopped reading."""
    os.set_blocking(fd, False)
    deadline = time.monotonic() + FULL_S
    while time.monotonic() < deadline:
        _, writable, _ = select.select([], [fd], [], FULL_S)
        if not writable:
            break
        with contextlib.suppress(BlockingIOError):
            os.write(fd, WHOLE_LINES)
            deadline = time.monotonic() + FULL_S


class TestPub:
    def test_pub_publishes_each_line_sub_writes_them_back(self, shell: Shell) -> None:
        values = [{"a": [1, 2.5, None, True]}, "é\u2028\u0000", -(2**63), 2**64 - 1, 1e-300, [], {"": {}}]
        shell.publish("t", *values)
        assert parse_lines(shell.run("sub", "t", "--start", "all", "--count", str(len(values)))) == values

    def test_pub_publishes_a_lone_line_at_once_while_input_stays_open(self, shell: Shell) -> None:
        sub = shell.start("sub", "t")
        pub = shell.start("pub", "t", "--wait-subscribers", "1", bufsize=0)
        assert pub.stdin is not None
        for number in range(3):
            pub.stdin.write(b"%d\n" % number)
            assert read_line(sub) == number

    def test_pub_skips_empty_lines_and_takes_a_last_line_without_end(self, shell: Shell) -> None:
        shell.run("pub", "t", stdin=b"\n1\n  \r\n2\r\n\n3")
        assert parse_lines(shell.run("sub", "t", "--start", "all", "--count", "3")) == [1, 2, 3]

    def test_pub_reads_a_file(self, shell: Shell, tmp_path: Path) -> None:
        path = tmp_path / "lines"
        path.write_bytes(json_lines(range(1000)))
        with path.open("rb") as file:
            assert shell.start("pub", "t", stdin=file).wait(TIMEOUT_S) == 0
        assert parse_lines(shell.run("sub", "t", "--start", "all", "--count", "1000")) == list(range(1000))

    def test_pub_takes_lines_from_a_terminal_until_ctrl_d(self, shell: Shell) -> None:
        ours, theirs = os.openpty()
        pub = shell.start("pub", "t", "--when-full", "wait", stdin=theirs)
        os.close(theirs)
        with open(ours, "r+b", buffering=0) as terminal:
            terminal.write(b"1\n2\n\x04")
            assert pub.wait(TIMEOUT_S) == 0
        assert parse_lines(shell.run("sub", "t", "--start", "all", "--count", "2")) == [1, 2]

    def test_pub_ends_after_count_records(self, shell: Shell) -> None:
        shell.run("pub", "t", "--count", "2", stdin=b"1\n2\n3\n4\n")
        assert json.loads(shell.run("stat", "t", "--json"))["published"] == 2

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            (b"{", "line 3: "),
            (b"{} {}", "line 3: "),
            (b"NaN", "line 3: "),
            (b'"\xff"', "line 3: "),
            (b"18446744073709551616", "line 3: an integer of more than 64 bits"),
            (b"-9223372036854775809", "line 3: an integer of more than 64 bits"),
            (b"[" * 100_000, "line 3: nested too deeply"),
        ],
        ids=["torn", "two-values", "nan", "not-utf-8", "over-64-bit", "under-64-bit", "nested"],
    )
    def test_pub_names_the_line_that_is_no_record_after_publishing_those_before(
        self, shell: Shell, line: bytes, reason: str
    ) -> None:
        errors = shell.run("pub", "t", stdin=b"1\n2\n" + line + b"\n4\n", status=1)
        assert errors.startswith(f"shmd: {reason}")
        assert len(errors.splitlines()) == 1
        assert json.loads(shell.run("stat", "t", "--json"))["published"] == 2

    def test_pub_refuses_a_record_over_the_limit_and_names_both(self, shell: Shell) -> None:
        errors = shell.run("pub", "t", "--size", "4KiB", stdin=b'"ok"\n"' + b"x" * 2000 + b'"\n', status=1)
        assert errors.startswith("shmd: record 2: ")
        assert "2003" in errors

    def test_pub_cuts_batches_to_fit_the_smallest_topic(self, shell: Shell) -> None:
        sub = shell.start("sub", "t", "--count", "5000")
        shell.publish("t", *range(5000), options=("--size", "4KiB", "--when-full", "wait", "--wait-subscribers", "1"))
        assert parse_lines(sub.communicate(timeout=TIMEOUT_S)[0]) == list(range(5000))

    def test_pub_makes_the_topic_as_its_options_say(self, shell: Shell) -> None:
        options = ("--size", "64KiB", "--when-full", "wait", "--mode", "640", "--exclusive")
        shell.run("pub", "t", *options)
        (topic,) = parse_lines(shell.run("ls", "--json"))
        assert (topic["size_bytes"], topic["when_full"], topic["mode"], topic["exclusive"]) == (
            65536,
            "wait",
            "0640",
            True,
        )

    def test_pub_names_both_values_of_an_option_that_the_topic_does_not_have(self, shell: Shell) -> None:
        shell.run("pub", "t", "--when-full", "wait")
        errors = shell.run("pub", "t", "--when-full", "discard-old", status=1)
        assert "wait" in errors
        assert "discard-old" in errors

    @pytest.mark.parametrize(
        "option", [("--size", "huge"), ("--mode", "999"), ("--when-full", "panic"), ("--count", "0")]
    )
    def test_pub_refuses_an_option_that_cannot_be(self, shell: Shell, option: tuple[str, str]) -> None:
        assert option[0] in shell.run("pub", "t", *option, status=2)

    def test_pub_ends_on_sigint_while_it_waits_for_room(self, shell: Shell) -> None:
        """Its subscriber is stopped, so there never is room; that it waits shows in the pipe it no longer reads."""
        sub = shell.start("sub", "t")
        options = ("--size", "4KiB", "--when-full", "wait", "--wait-subscribers", "1")
        pub = shell.start("pub", "t", *options, bufsize=0)
        assert pub.stdin is not None
        pub.stdin.write(b"0\n")
        assert read_line(sub) == 0
        sub.send_signal(signal.SIGSTOP)
        fill(pub.stdin.fileno())
        assert end(pub, signal.SIGINT) == (130, b"")


class TestSub:
    def test_sub_starts_where_it_is_told(self, shell: Shell) -> None:
        shell.publish("t", "a", "b", "c")
        assert shell.run("sub", "t", "--start", "last", "--count", "1") == '"c"\n'
        assert shell.run("sub", "t", "--start", "2", "--count", "2") == '"b"\n"c"\n'
        assert shell.run("sub", "t", "--start", "2000-01-01", "--count", "1") == '"a"\n'

    def test_sub_refuses_a_start_that_is_none(self, shell: Shell) -> None:
        assert "yesterday" in shell.run("sub", "t", "--start", "yesterday", status=2)

    def test_sub_with_json_writes_whole_records(self, shell: Shell) -> None:
        shell.publish("t", "a", "b")
        first, second = parse_lines(shell.run("sub", "t", "--start", "all", "--count", "2", "--json"))
        assert (first["topic"], first["seq"], first["lost"], first["value"]) == ("t", 1, 0, "a")
        assert (second["seq"], second["publisher"]) == (2, first["publisher"])
        assert second["time_ns"] >= first["time_ns"] > 0

    def test_sub_of_a_pattern_follows_topics_as_they_are_made(self, shell: Shell) -> None:
        sub = shell.start("sub", "a.>", "--json")
        shell.publish("a.b", 1, options=("--wait-subscribers", "1"))
        record = read_line(sub)
        assert (record["topic"], record["value"]) == ("a.b", 1)

    def test_pub_and_sub_pass_raw_bytes_as_they_are(self, shell: Shell) -> None:
        frames = b"".join(map(frame, [b"", b"\x00\xff\n", bytes(range(256)) * 100]))
        shell.run("pub", "t", "--raw", stdin=frames)
        sub = shell.start("sub", "t", "--raw", "--start", "all", "--count", "3")
        assert sub.communicate(timeout=TIMEOUT_S)[0] == frames

    @pytest.mark.parametrize(
        ("rest", "reason"), [(b"\x05\x00\x00\x00abc", "7 bytes into"), (b"\xff" * 4, "4294967295")]
    )
    def test_pub_refuses_raw_input_that_ends_or_cannot_be(self, shell: Shell, rest: bytes, reason: str) -> None:
        assert reason in shell.run("pub", "t", "--raw", stdin=frame(b"ok") + rest, status=1)
        assert json.loads(shell.run("stat", "t", "--json"))["published"] == 1

    def test_sub_names_the_record_that_is_no_json_after_writing_those_before(self, shell: Shell) -> None:
        shell.run("pub", "t", "--raw", stdin=frame(b"\x01") + frame(b"\xc1") + frame(b"\x02"))
        sub = shell.start("sub", "t", "--start", "all", "--count", "3")
        output, errors = sub.communicate(timeout=TIMEOUT_S)
        assert (sub.returncode, output) == (1, b"1\n")
        assert errors.startswith(b"shmd: record 2 of t ")

    def test_sub_writes_what_json_lacks_as_text(self, shell: Shell) -> None:
        payloads = [b"\xc4\x02hi", b"\xd6\xff\x00\x00\x00\x00", b"\xcb\x7f\xf8" + bytes(6), b"\x81\x01\x02"]
        shell.run("pub", "t", "--raw", stdin=b"".join(map(frame, payloads)))
        lines = shell.run("sub", "t", "--start", "all", "--count", "4").splitlines()
        assert lines == ['"aGk="', '"1970-01-01T00:00:00Z"', "null", '{"1":2}']

    def test_sub_refuses_raw_and_json_together(self, shell: Shell) -> None:
        assert "exclude" in shell.run("sub", "t", "--raw", "--json", status=2)

    def test_sub_tells_at_the_end_how_many_were_lost(self, shell: Shell) -> None:
        shell.publish("t", *range(1000), options=("--size", "4KiB"))
        sub = shell.start("sub", "t", "--start", "1", "--count", "1")
        output, errors = sub.communicate(timeout=TIMEOUT_S)
        first = int(output)
        assert first > 0
        assert errors.decode() == f"shmd: {first} records lost\n"

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_sub_ends_on_a_signal_without_a_word(self, shell: Shell, number: int) -> None:
        sub = shell.start("sub", "t")
        shell.publish("t", 1, options=("--wait-subscribers", "1"))
        read_line(sub)
        assert end(sub, number) == (128 + number, b"")

    def test_sub_ends_on_sigint_while_its_reader_stalls(self, shell: Shell) -> None:
        """Nobody reads what it writes: pipe and topic fill up behind it, at last the pipe into pub."""
        sub = shell.start("sub", "t")
        options = ("--size", "4KiB", "--when-full", "wait", "--wait-subscribers", "1")
        pub = shell.start("pub", "t", *options, bufsize=0)
        assert pub.stdin is not None
        fill(pub.stdin.fileno())
        sub.send_signal(signal.SIGINT)
        assert sub.wait(TIMEOUT_S) == 130

    def test_sub_ends_when_its_reader_leaves_though_nothing_comes(self, shell: Shell) -> None:
        sub = shell.start("sub", "t")
        shell.publish("t", 1, options=("--wait-subscribers", "1"))
        read_line(sub)
        assert sub.stdout is not None
        assert sub.stderr is not None
        sub.stdout.close()
        assert sub.wait(TIMEOUT_S) == 128 + signal.SIGPIPE
        assert sub.stderr.read() == b""

    def test_sub_tells_in_one_line_that_its_output_is_full(self, shell: Shell) -> None:
        shell.publish("t", 1)
        with open("/dev/full", "wb") as full:
            sub = shell.start("sub", "t", "--start", "all", stdout=full)
            errors = sub.communicate(timeout=TIMEOUT_S)[1]
        assert (sub.returncode, errors) == (1, b"shmd: No space left on device\n")

    def test_sub_of_a_topic_that_is_removed_ends_with_that_word(self, shell: Shell) -> None:
        sub = shell.start("sub", "t")
        shell.publish("t", 1, options=("--wait-subscribers", "1"))
        read_line(sub)
        shell.run("rm", "t")
        errors = sub.communicate(timeout=TIMEOUT_S)[1]
        assert sub.returncode == 1
        assert errors.startswith(b"shmd: topic 't' was removed")


class TestTopics:
    def test_ls_lists_matching_topics_in_order(self, shell: Shell) -> None:
        for topic in ("b.x", "a", "b.a"):
            shell.run("pub", topic)
        assert [topic["name"] for topic in parse_lines(shell.run("ls", "--json"))] == ["a", "b.a", "b.x"]
        lines = shell.run("ls", "b.*").splitlines()
        assert lines[0].split()[:2] == ["TOPIC", "SIZE"]
        assert [line.split()[0] for line in lines[1:]] == ["b.a", "b.x"]

    def test_ls_of_nothing_prints_nothing(self, shell: Shell) -> None:
        assert shell.run("ls") == ""

    def test_ls_refuses_a_pattern_that_is_none(self, shell: Shell) -> None:
        assert "a..b" in shell.run("ls", "a..b", status=1)

    def test_stat_shows_records_and_participants(self, shell: Shell) -> None:
        sub = shell.start("sub", "t")
        shell.publish("t", "a", "b", options=("--wait-subscribers", "1"))
        read_line(sub)
        found = json.loads(shell.run("stat", "t", "--json"))
        assert (found["name"], found["first_seq"], found["last_seq"], found["published"]) == ("t", 1, 2, 2)
        (subscriber,) = found["subscribers"]
        assert (subscriber["pid"], subscriber["name"], subscriber["lost"]) == (sub.pid, "shmd sub", 0)
        text = shell.run("stat", "t")
        assert "1 to 2" in text
        assert str(sub.pid) in text

    def test_stat_names_the_stopped_process_that_holds_publishers_back(self, shell: Shell) -> None:
        pub = shell.start("pub", "t", "--when-full", "wait", "--size", "4KiB", "--wait-subscribers", "1")
        sub = shell.start("sub", "t")
        write_line(pub, 1)
        read_line(sub)
        running = json.loads(shell.run("stat", "t", "--json"))
        assert [who["stopped"] for who in (*running["publishers"], *running["subscribers"])] == [False, False]
        assert "stopped" not in shell.run("stat", "t")
        sub.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, sub.pid, os.WSTOPPED | os.WNOWAIT)
        write_line(pub, 2)
        while (found := json.loads(shell.run("stat", "t", "--json")))["last_seq"] < 2:
            pass
        assert [who["stopped"] for who in (*found["publishers"], *found["subscribers"])] == [False, True]
        (row,) = [line.split() for line in shell.run("stat", "t").splitlines() if "stopped" in line]
        assert (row[1], row[3]) == (str(sub.pid), "yes")

    def test_stat_of_no_topic_fails(self, shell: Shell) -> None:
        assert "'t'" in shell.run("stat", "t", status=1)

    def test_rm_removes_what_it_can_and_names_what_it_cannot(self, shell: Shell) -> None:
        for topic in ("a", "b"):
            shell.run("pub", topic)
        errors = shell.run("rm", "a", "none", "b", status=1)
        assert errors == "shmd: there is no topic 'none' (shmd ls lists those that there are)\n"
        assert shell.run("ls") == ""

    def test_purge_removes_all_if_told_yes(self, shell: Shell) -> None:
        for topic in ("a", "b"):
            shell.run("pub", topic)
        shell.run("purge", stdin=b"n\n", status=1)
        assert len(parse_lines(shell.run("ls", "--json"))) == 2
        shell.run("purge", "--yes")
        assert shell.run("ls") == ""


class TestServe:
    def test_serve_removes_its_topics_and_ends_with_0_on_a_signal(
        self, shmd_daemon: DaemonProcess, shell: Shell
    ) -> None:
        shell.publish("t", 1)
        assert f"shmd: listening on {shmd_daemon.socket_path}" in shmd_daemon.log
        assert shmd_daemon.stop() == 0
        assert not os.path.exists(shmd_daemon.socket_path)

    def test_serve_ends_with_0_on_ctrl_c(self, shmd_daemon: DaemonProcess) -> None:
        shmd_daemon.process.send_signal(signal.SIGINT)
        assert shmd_daemon.process.wait(TIMEOUT_S) == 0
        assert "Traceback" not in shmd_daemon.log
        shmd_daemon.kill()

    def test_serve_refuses_an_instance_that_has_a_daemon(self, shmd_daemon: DaemonProcess, shell: Shell) -> None:
        errors = shell.run(
            "serve", "--runtime-dir", str(shmd_daemon.runtime_dir), "--instance", shmd_daemon.instance, status=1
        )
        assert str(shmd_daemon.pid) in errors
        assert shell.run("ls") == ""

    def test_serve_listens_where_clients_look(self, tmp_path: Path) -> None:
        shell = Shell(str(tmp_path / "s"))
        serve = shell.start("serve", "--runtime-dir", str(tmp_path / "run"), "--ephemeral")
        shell.run("pub", "t", "--wait", stdin=b"1\n")
        assert shell.run("sub", "t", "--wait", "--start", "all", "--count", "1") == "1\n"
        status, errors = end(serve, signal.SIGTERM)
        assert (status, f"listening on {tmp_path / 's'}\n" in errors.decode()) == (0, True)
        shell.close()

    @pytest.mark.parametrize("chosen", ["--socket", "--instance"])
    def test_serve_listens_elsewhere_if_that_is_chosen(self, tmp_path: Path, chosen: str) -> None:
        arguments = {"--socket": str(tmp_path / "s"), "--instance": "default"}
        socket_path = {"--socket": tmp_path / "s", "--instance": tmp_path / "run" / "control.sock"}[chosen]
        shell = Shell(str(tmp_path / "environment"))
        serve = shell.start("serve", "--runtime-dir", str(tmp_path / "run"), "--ephemeral", chosen, arguments[chosen])
        shell.run("pub", "t", "--wait", "--socket", str(socket_path))
        assert end(serve, signal.SIGTERM)[0] == 0
        shell.close()

    def test_serve_keeps_to_its_byte_budget(self, shmd_start: StartDaemon) -> None:
        shell = Shell(shmd_start("--max-bytes", "1MiB").socket_path)
        assert "--max-bytes" in shell.run("pub", "t", "--size", "2MiB", status=1)
        shell.close()

    def test_serve_takes_settings_from_a_file(self, shmd_start: StartDaemon, tmp_path: Path) -> None:
        (tmp_path / "shmd.toml").write_text("topics_max = 1\n")
        shell = Shell(shmd_start("--config", str(tmp_path / "shmd.toml")).socket_path)
        shell.run("pub", "a")
        assert "topics" in shell.run("pub", "b", status=1)
        shell.close()


@pytest.mark.parametrize(
    "command", [("pub", "t"), ("sub", "t"), ("ls",), ("stat", "t"), ("rm", "t"), ("purge", "--yes")], ids=lambda c: c[0]
)
def test_command_without_daemon_ends_in_one_line_and_69(command: tuple[str, ...], tmp_path: Path) -> None:
    errors = Shell(str(tmp_path / "none.sock")).run(*command, status=69)
    assert errors.startswith("shmd: ")
    assert "none.sock" in errors
    assert len(errors.splitlines()) == 1


def test_command_looks_where_instance_and_socket_say(shmd_daemon: DaemonProcess, shell: Shell, tmp_path: Path) -> None:
    shell.run("pub", "t")
    elsewhere = Shell(str(tmp_path / "none.sock"))
    assert "t" in elsewhere.run("ls", "--socket", shmd_daemon.socket_path)
    environment = {name: value for name, value in os.environ.items() if name != "SHMD_SOCKET"}
    ls = elsewhere.start("ls", "--instance", "elsewhere", env=environment | {"XDG_RUNTIME_DIR": str(tmp_path)})
    assert str(tmp_path / "shmd" / "elsewhere" / "control.sock") in ls.communicate(timeout=TIMEOUT_S)[1].decode()
    elsewhere.close()


@pytest.mark.parametrize("command", ["pub", "sub"])
def test_command_that_waits_for_a_daemon_ends_on_ctrl_c(command: str, tmp_path: Path) -> None:
    """It goes on looking: it has opened another socket since it was started."""
    shell = Shell(str(tmp_path / "s"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(shell.socket_path)
        listening.listen()
        waiting = shell.start(command, "t", "--wait")
        for _ in range(2):
            listening.accept()[0].close()
        assert end(waiting, signal.SIGINT) == (130, b"")
    shell.close()


def test_command_ends_quietly_where_the_reader_left_before_it_wrote(shell: Shell) -> None:
    shell.run("pub", "t")
    reader, writer = os.pipe()
    os.close(reader)
    ls = shell.start("ls", stdout=writer)
    os.close(writer)
    errors = ls.communicate(timeout=TIMEOUT_S)[1]
    assert (ls.returncode, errors) == (128 + signal.SIGPIPE, b"")


@pytest.mark.parametrize(
    "arguments", [("--help",), ("--version",), *((name, "--help") for name in ("serve", "demo", "sub"))]
)
def test_command_explains_itself_without_a_daemon(arguments: tuple[str, ...]) -> None:
    assert "shmd" in Shell("").run(*arguments)


def test_command_that_is_none_is_a_usage_error() -> None:
    assert "conquer" in Shell("").run("conquer", status=2)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [(("lss",), "ls"), (("sbu", "t"), "sub"), (("segment", "lsit"), "ls"), (("satt",), "stat")],
)
def test_command_that_is_mistyped_is_answered_with_what_was_meant(typed: tuple[str, ...], meant: str) -> None:
    assert f"did you mean {meant}?" in Shell("").run(*typed, status=2)


def commands(group: click.Group, *names: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """All commands, and the groups they are in, by what is typed."""
    yield names, group
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, *names, name)
        else:
            yield (*names, name), command


COMMANDS = dict(commands(cli))


@pytest.mark.parametrize("names", COMMANDS, ids=lambda names: " ".join(names) or "shmd")
def test_help_names_values_by_words(names: tuple[str, ...]) -> None:
    text = COMMANDS[names].get_help(click.Context(COMMANDS[names], info_name="shmd"))
    values = re.findall(r"^  --[a-z-]+ (?!\[)(\S.*?)(?:  |$)", text, re.MULTILINE)
    assert [value for value in values if not re.fullmatch("[A-Z]+(:[A-Z]+)?", value)] == []


@pytest.mark.parametrize("names", [names for names in COMMANDS if names], ids=" ".join)
def test_list_of_commands_says_of_each_what_its_own_help_begins_with(names: tuple[str, ...]) -> None:
    """The list is written down, so that listing imports nothing."""
    group = COMMANDS.get(names[:-1], cli)
    assert isinstance(group, Commands)
    said = group.table[names[-1]][1]
    assert said.endswith(".")
    assert len(said) <= 80
    assert set(words(said)[:1]) <= set(words(COMMANDS[names].help or ""))


def words(text: str) -> list[str]:
    return re.findall(r"[a-z/]+", text.lower())
