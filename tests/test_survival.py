"""What nobody notices: a daemon that dies in the middle of a transfer, or is restarted again and again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from shmd import inventory
from shmd.cli.torture import leaks
from shmd.cli.torture.chaos import Chaos
from shmd.config import instance_id
from tests.shell import TIMEOUT_S, Shell

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from shmd.cli.torture.crew import Member
    from shmd.testing import StartDaemon

RECORDS = 200_000
RECORDS_SOAK = 10_000_000
RESTARTS = 20
RESTARTS_SOAK = 500
WARM_RESTARTS = 3
"""After so many, whatever is made once and kept has been made."""
GROWTH_BYTES = 4 * 2**20
"""Of a process's memory, between the third restart and the last: what an allocator may keep."""
PATH = {"PYTHONPATH": str(Path(__file__).parent.parent)}


def test_transfer_goes_on_without_gap_or_double_while_the_daemon_is_killed(
    shmd_start: StartDaemon, soak: bool, record_property: Callable[[str, object], None]
) -> None:
    count = RECORDS_SOAK if soak else RECORDS
    daemon = shmd_start()

    def start(what: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.transfer_child", daemon.socket_path, what, str(count)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent)

    with start("receive") as receiver, start("send") as sender:
        assert receiver.stdout is not None
        assert receiver.stdout.readline() == b"half\n"
        daemon.kill()
        shmd_start(instance=daemon.instance, runtime_dir=daemon.runtime_dir)
        output, _ = receiver.communicate()
        assert (sender.wait(), receiver.returncode) == (0, 0)
    account = json.loads(output)
    print(f"longest pause {account['longest_pause_s']:.3f} s")  # noqa: T201
    record_property("longest_pause_s", account["longest_pause_s"])
    assert account["wrong"] == []
    assert account["received"] == count


def test_restarts_of_the_daemon_leave_every_process_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, soak: bool
) -> None:
    """Under load: descriptors and segments are the same after each restart, and memory does not grow."""
    with Chaos(tmp_path_factory.mktemp("c"), 0) as chaos:
        chaos.begin()
        members = [member for member in chaos.crew.members if member.kind != "daemon"]
        before = [leaks.descriptors(member.process.pid) for member in members]
        daemons = [leaks.descriptors(daemon(chaos).process.pid)]
        memory: list[list[int]] = []
        for restart in range(RESTARTS_SOAK if soak else RESTARTS):
            chaos.act("kill daemon" if restart % 2 else "restart daemon")
            chaos.wait(0.5)  # longer than a daemon stays away
            for member, expected in zip(members, before, strict=True):
                assert until_the_same(member, expected) == expected
            daemons.append(until_as_many(chaos, daemons[0]))
            assert len(segments(chaos)) == 5
            memory.append([resident_bytes(member) for member in [*members, daemon(chaos)]])
        assert daemons == [daemons[0]] * len(daemons)
        grown = [last - warm for last, warm in zip(memory[-1], memory[WARM_RESTARTS], strict=True)]
        assert max(grown) < GROWTH_BYTES, grown
        outcome = chaos.finish()
    assert outcome.ok, [*outcome.broken, *outcome.leaked]


def test_attached_topics_go_with_everybody_who_was_killed(shmd_start: StartDaemon) -> None:
    """Publisher, subscriber and daemon: all that stays is the roster, which knows that the topic is gone."""
    daemon = shmd_start()
    shell = Shell(daemon.socket_path)
    code = (
        "import asyncio, sys, shmd\n"
        "async def main():\n"
        "    async with shmd.connect(sys.argv[1]) as client:\n"
        "        publisher = await client.publisher('t', lifetime='attached')\n"
        "        subscription = await client.subscribe('t')\n"
        "        await publisher.publish(1)\n"
        "        await subscription.get()\n"
        "        print('ready', flush=True)\n"
        "        await asyncio.sleep(3600)\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-c", code, daemon.socket_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | PATH) as participant:
        assert participant.stdout is not None
        assert participant.stdout.readline() == b"ready\n"
        assert kinds(daemon.instance) == ["ctl", "log", "roster"]
        participant.kill()
        daemon.kill()
    assert kinds(daemon.instance) == ["roster"]
    shmd_start(instance=daemon.instance, runtime_dir=daemon.runtime_dir)
    assert shell.run("ls") == ""
    shell.close()


def kinds(instance: str) -> list[str]:
    return sorted(found.kind for found in inventory.take().of(instance_id(instance, os.getuid())).segments)


def daemon(chaos: Chaos) -> Member:
    (found,) = chaos.crew.of_kind("daemon")
    return found


def segments(chaos: Chaos) -> list[str]:
    return leaks.segments(chaos.crew.instance)


def until_the_same(member: Member, expected: list[str]) -> list[str]:
    """Its descriptors, once it has come back to the daemon; or after long enough, whatever they are."""
    deadline = time.monotonic() + TIMEOUT_S
    while (found := leaks.descriptors(member.process.pid)) != expected and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def until_as_many(chaos: Chaos, expected: list[str]) -> list[str]:
    return until_the_same(daemon(chaos), expected)


def resident_bytes(member: Member) -> int:
    pages = int(Path("/proc", str(member.process.pid), "statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
