"""Participants and daemons in PID namespaces of their own: who is refused, who is proven dead, and by what."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import shmd
from shmd.config import DaemonConfig
from tests.core_builds import ROOT
from tests.loop_turns import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from typing import Any

    from shmd.testing import DaemonProcess

    Start = Callable[..., Coroutine[Any, Any, asyncio.subprocess.Process]]

UNSHARE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
pytestmark = [
    pytest.mark.may_block,
    pytest.mark.skipif(
        subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode != 0
        if os.path.exists("/usr/bin/unshare")
        else True,
        reason="a PID namespace cannot be made here",
    ),
]

PARTICIPANT = """
import asyncio, sys, shmd

async def main(path, role, topic):
    async with shmd.connect(path, name="inside") as client:
        if role == "subscriber":
            opened = await client.subscribe(topic)
        else:
            opened = await client.publisher(topic, size=4096, when_full="wait", exclusive=role == "exclusive" or None)
        print("open", flush=True)
        for line in sys.stdin:
            if role == "subscriber":
                print((await opened.get()).value, flush=True)
            else:
                print(await opened.publish(line.strip()), flush=True)

try:
    asyncio.run(main(*sys.argv[1:]))
except shmd.ShmdError as error:
    print(type(error).__name__, flush=True)
"""


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts a Python program, in a PID namespace of its own if that is asked for."""
    processes: list[asyncio.subprocess.Process] = []

    async def start(*arguments: str, inside: bool = True) -> asyncio.subprocess.Process:
        command = [*(UNSHARE if inside else ()), sys.executable, *arguments]
        process = await asyncio.create_subprocess_exec(
            *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()  # and with it, by --kill-child, all of its namespace
        await process.communicate()


async def line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await process.stdout.readline()).decode().strip()


async def order(process: asyncio.subprocess.Process, text: str) -> str:
    assert process.stdin is not None
    process.stdin.write(text.encode() + b"\n")
    return await line(process)


async def test_second_publisher_from_another_pid_namespace_is_refused(
    shmd_daemon: DaemonProcess, shmd_client: shmd.Client, start: Start
) -> None:
    """The lock's word is a thread id, which means somebody else there."""
    async with shmd_client.publisher("t", size=4096, when_full="wait"):
        inside = await start("-c", PARTICIPANT, shmd_daemon.socket_path, "shared", "t")
        assert await line(inside) == "NamespaceMismatch"


async def test_exclusive_publisher_and_subscriber_in_another_pid_namespace_work(
    shmd_daemon: DaemonProcess, shmd_client: shmd.Client, start: Start
) -> None:
    publisher = await start("-c", PARTICIPANT, shmd_daemon.socket_path, "exclusive", "t")
    assert await line(publisher) == "open"
    subscriber = await start("-c", PARTICIPANT, shmd_daemon.socket_path, "subscriber", "t")
    assert await line(subscriber) == "open"
    async with shmd_client.subscribe("t") as outside:
        assert await order(publisher, "hello") == "1"
        assert await order(subscriber, "") == "hello"
        assert (await outside.get()).value == "hello"


@pytest.mark.parametrize("role", ["exclusive", "subscriber"])
async def test_killed_participant_in_another_pid_namespace_gives_up_lease_and_slot(
    shmd_daemon: DaemonProcess, shmd_client: shmd.Client, start: Start, role: str
) -> None:
    await shmd_client.topic("t", size=4096, when_full="wait", exclusive=True)
    inside = await start("-c", PARTICIPANT, shmd_daemon.socket_path, role, "t")
    assert await line(inside) == "open"

    async def participants() -> list[int]:
        stat = await shmd_client.stat("t")
        assert stat is not None
        return [*(who.pid for who in stat.publishers), *(who.pid for who in stat.subscribers)]

    (pid,) = await participants()
    assert os.stat(f"/proc/{pid}/ns/pid").st_ino != os.stat("/proc/self/ns/pid").st_ino
    os.kill(pid, 9)  # our own namespace's number for it, as the kernel told the daemon

    async def gone() -> bool:
        return await participants() == []

    await until(gone)
    async with shmd_client.publisher("t"):
        pass


def _child_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())


@pytest.fixture
async def inner(tmp_path: Path, start: Start) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A daemon in a PID namespace of its own, and its socket: to it we have the pid 0."""
    config = DaemonConfig(runtime_dir=tmp_path)
    daemon = await start("-m", "tests.failing_daemon", str(tmp_path))
    assert await line(daemon) == "listening"
    yield daemon, str(config.socket_path)
    os.kill(_child_of(daemon.pid), 15)
    assert await daemon.wait() == 0


async def test_daemon_in_another_pid_namespace_sees_the_death_of_whom_it_has_no_pid(
    inner: tuple[asyncio.subprocess.Process, str], start: Start
) -> None:
    """SO_PEERPIDFD tells what no pid could."""
    _, path = inner
    outside = await start("-c", PARTICIPANT, path, "exclusive", "t", inside=False)
    assert await line(outside) == "open"
    async with shmd.connect(path) as client:
        stat = await client.stat("t")
        assert stat is not None
        assert [who.pid for who in stat.publishers] == [0]
        with pytest.raises(shmd.TopicBusy):
            await client.publisher("t")
        outside.kill()

        async def gone() -> bool:
            found = await client.stat("t")
            return found is not None and found.publishers == ()

        await until(gone)
        async with client.publisher("t"):
            pass
