"""What others chose reaches a terminal in escapes, and a program as it is."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import struct
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import shmd
from shmd.printable import printable, printable_json
from tests.shell import TIMEOUT_S, Shell, parse_lines

if TYPE_CHECKING:
    from collections.abc import Callable

    from shmd.testing import DaemonProcess, StartDaemon

NASTY = "\x1b]0;owned\x07\x1b[2J\r\x7f\x9b31m\u202egnp.exe\u200b\x00"
"""Sets the title, clears the screen, goes back, deletes; C1's way to a colour; turns the direction, hides."""
FRIENDLY = "Zoë 東京 🙂 {'a': \\}"


def is_harmless(text: str) -> bool:
    return all(char.isprintable() or char == "\n" for char in text)


class TestPrintable:
    @given(st.text(st.characters()))
    def test_nothing_is_left_that_a_terminal_would_obey(self, text: str) -> None:
        assert printable(text).isprintable()

    @given(st.text(st.characters()).filter(str.isprintable))
    def test_what_is_printable_stays(self, text: str) -> None:
        assert printable(text) == printable_json(text) == text

    def test_it_says_what_was_there(self) -> None:
        assert printable("a\x1b[2J\u202e\n\udcff") == r"a\x1b[2J\u202e\n\udcff"
        assert printable("a\tb\nc\x00", keep="\n\t") == "a\tb\nc\\x00"
        assert printable(FRIENDLY) == FRIENDLY

    @given(st.recursive(st.text(st.characters(codec="utf-8")), st.lists, max_leaves=4))
    def test_json_means_the_same_and_is_printable(self, value: object) -> None:
        text = printable_json(json.dumps(value, ensure_ascii=False) + "\n")
        assert is_harmless(text)
        assert json.loads(text) == value


class TestCommands:
    """A client and a publisher choose what an operator looks at."""

    @pytest.fixture
    def nasty(self, shmd_daemon: DaemonProcess) -> Callable[[Callable[[], Any]], Any]:
        """Does something while a client with a nasty name publishes nasty records, exclusively."""

        async def while_it_publishes(look: Callable[[], Any]) -> Any:
            async with (
                shmd.connect(shmd_daemon.socket_path, name=NASTY) as client,
                client.publisher("t", exclusive=True) as publisher,
                client.subscribe("t"),
            ):
                await publisher.publish_many([NASTY, FRIENDLY, {NASTY: 1}])
                return await asyncio.to_thread(look)

        return lambda look: asyncio.run(while_it_publishes(look))

    @pytest.mark.parametrize(
        "command",
        [
            ("ls",),
            ("stat", "t"),
            ("stat", "t", "--json"),
            ("sub", "t", "--start", "all", "--count", "3"),
            ("sub", "t", "--start", "all", "--count", "3", "--json"),
            ("sub", "t", "--start", "all", "--count", "3", "--raw"),
            ("pub", "t"),
        ],
        ids=" ".join,
    )
    def test_terminal_is_shown_nothing_that_it_obeys(
        self, shell: Shell, nasty: Callable[[Callable[[], Any]], Any], command: tuple[str, ...]
    ) -> None:
        shown = nasty(lambda: on_terminal(shell, *command))
        assert shown
        assert is_harmless(shown)
        if command != ("ls",):
            assert "owned" in shown

    def test_json_on_a_terminal_means_what_it_means_in_a_pipe(
        self, shell: Shell, nasty: Callable[[Callable[[], Any]], Any]
    ) -> None:
        for command in (("sub", "t", "--start", "all", "--count", "3"), ("stat", "t", "--json"), ("ls", "--json")):

            def look(command: tuple[str, ...] = command) -> tuple[str, str]:
                return on_terminal(shell, *command), shell.run(*command)

            shown, piped = nasty(look)
            assert without_pids(parse_lines(shown)) == without_pids(parse_lines(piped))
            shell.run("rm", "t")

    def test_pipe_gets_every_character_and_byte_as_it_is(
        self, shell: Shell, nasty: Callable[[Callable[[], Any]], Any]
    ) -> None:
        lines, frames = nasty(
            lambda: (
                shell.run("sub", "t", "--start", "all", "--count", "3"),
                shell.start("sub", "t", "--start", "all", "--count", "1", "--raw").communicate(timeout=TIMEOUT_S)[0],
            )
        )
        assert parse_lines(lines) == [NASTY, FRIENDLY, {NASTY: 1}]
        assert "\x9b" in lines
        assert "\u202e" in lines
        payload = b"\xd9" + bytes([len(NASTY.encode())]) + NASTY.encode()
        assert frames == struct.pack("<I", len(payload)) + payload

    def test_bytes_of_a_segment_are_escaped_on_a_terminal_and_exact_in_a_pipe(self, shell: Shell) -> None:
        content = b"two\nlines\x1b[2J\xff\x00"
        shell.run("segment", "create", "s", "--size", str(len(content)))
        shell.run("segment", "write", "s", stdin=content)
        assert on_terminal(shell, "segment", "read", "s", "--raw") == "two\nlines\\x1b[2J\\xff\\x00"
        read = shell.start("segment", "read", "s", "--raw")
        assert read.communicate(timeout=TIMEOUT_S)[0] == content

    def test_daemons_log_has_a_line_for_what_it_says_whatever_it_quotes(self, shmd_start: StartDaemon) -> None:
        daemon = shmd_start("--verbose")

        async def connect() -> None:
            for name in (NASTY, "x\nshmd: all is well"):
                async with shmd.connect(daemon.socket_path, name=name):
                    pass

        asyncio.run(connect())
        assert is_harmless(daemon.log)
        assert "owned" in daemon.log
        assert "\nshmd: all is well" not in daemon.log


def on_terminal(shell: Shell, *arguments: str) -> str:
    """What a command shows on a terminal, of both its streams."""
    ours, theirs = os.openpty()
    process = shell.start(*arguments, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    # EIO comes when nobody has the other end open any more.
    with open(ours, "rb", buffering=0) as terminal, contextlib.suppress(OSError):
        while part := terminal.read(65536):
            shown += part
    process.wait(TIMEOUT_S)
    return shown.decode().replace("\r\n", "\n")


def without_pids(found: list[Any]) -> list[Any]:
    """Two runs of one command differ in who looks."""
    return [
        {name: value for name, value in one.items() if name != "subscribers"} if isinstance(one, dict) else one
        for one in found
    ]
