"""Waiting costs nothing: sleepers are not scheduled until there is something for them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from tests.conftest import SOAK
from tests.notifiers import NOTIFIERS

if TYPE_CHECKING:
    from shmd.testing import DaemonProcess
    from tests.shell import Shell

PROCESSES = 4
SUBSCRIBERS_OF_EACH = 25
"""Of one process and notifier."""
WINDOW_S = 10.0 if SOAK or os.environ.get("CI") else 2.0
SETTLING_S = 0.2


def voluntary_switches(pid: int) -> dict[str, int]:
    """By thread: how often it went to sleep by itself."""
    counts = {}
    for task in Path("/proc", str(pid), "task").iterdir():
        fields = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
        counts[task.name] = int(fields["voluntary_ctxt_switches"])
    return counts


def all_switches(pids: list[int]) -> dict[int, dict[str, int]]:
    return {pid: voluntary_switches(pid) for pid in pids}


def settle(pids: list[int]) -> None:
    """Until nobody has done anything for a moment; the watchdog ends it if that never comes."""
    before = all_switches(pids)
    while True:
        time.sleep(SETTLING_S)
        now = all_switches(pids)
        if now == before:
            return
        before = now


def test_sleeping_subscribers_and_their_daemon_make_no_context_switch(shmd_daemon: DaemonProcess, shell: Shell) -> None:
    for notifier in NOTIFIERS:
        shell.publish(notifier, options=["--notifier", notifier])
    command = [sys.executable, "-m", "tests.idle_child", shmd_daemon.socket_path, str(SUBSCRIBERS_OF_EACH), *NOTIFIERS]
    with ExitStack() as stack:
        children = []
        for _ in range(PROCESSES):
            child = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
            stack.callback(child.kill)
            children.append(child)
        _wait_ready(children)
        for topic in NOTIFIERS:
            shell.publish(topic, "once awake, so that they have something to fall asleep from")
        _wait_ready(children)

        pids = [shmd_daemon.pid, *(child.pid for child in children)]
        settle(pids)
        before = all_switches(pids)
        time.sleep(WINDOW_S)
        assert all_switches(pids) == before

        for topic in NOTIFIERS:
            shell.publish(topic, "and they were listening all the time")
        _wait_ready(children)


def _wait_ready(children: list[subprocess.Popen[bytes]]) -> None:
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
