"""Who is proven dead, and who only looks like it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shmd import liveness
from shmd.liveness import Process
from tests.children import needs_root

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) as process:
        yield process
        process.kill()


def _wait_for_zombie(pid: int) -> None:
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def test_living_process_is_not_dead(child: subprocess.Popen[bytes]) -> None:
    process = liveness.process(child.pid)
    assert process.start_time > 0
    assert not liveness.is_dead(process)


def test_stopped_process_is_not_dead(child: subprocess.Popen[bytes]) -> None:
    process = liveness.process(child.pid)
    child.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
    assert liveness.is_stopped(child.pid)
    assert not liveness.is_dead(process)


def test_zombie_is_dead(child: subprocess.Popen[bytes]) -> None:
    process = liveness.process(child.pid)
    child.kill()
    _wait_for_zombie(child.pid)
    assert Path(f"/proc/{child.pid}").exists()
    assert liveness.is_dead(process)


def test_process_that_was_waited_for_is_dead(child: subprocess.Popen[bytes]) -> None:
    process = liveness.process(child.pid)
    child.kill()
    child.wait()
    assert liveness.is_dead(process)
    assert liveness.start_time(child.pid) == liveness.UNKNOWN


def test_pid_used_again_means_that_the_first_is_dead(child: subprocess.Popen[bytes]) -> None:
    now = liveness.process(child.pid)
    assert liveness.is_dead(Process(now.pid, now.start_time - 1))


def test_unknown_start_time_proves_nothing(child: subprocess.Popen[bytes]) -> None:
    assert not liveness.is_dead(Process(child.pid))


def test_pid_that_is_now_a_thread_means_that_the_process_is_dead() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        assert thread.native_id is not None
        assert not liveness.has_no_thread(thread.native_id)
        assert liveness.is_dead(Process(thread.native_id, 1))
    finally:
        done.set()
        thread.join()
    while not liveness.has_no_thread(thread.native_id):  # joined is not yet gone from the kernel
        pass


def test_process_of_another_pid_namespace_is_never_proven_dead() -> None:
    assert not liveness.is_dead(Process(liveness.UNKNOWN, 1))


def test_pidfd_becomes_readable_with_the_death(child: subprocess.Popen[bytes]) -> None:
    pidfd = liveness.open_pidfd(liveness.process(child.pid))
    assert pidfd is not None
    assert not liveness.has_ended(pidfd)
    child.kill()
    _wait_for_zombie(child.pid)
    assert liveness.has_ended(pidfd)
    os.close(pidfd)


def test_name_in_parentheses_does_not_confuse(tmp_path: Path) -> None:
    script = "import ctypes, signal; ctypes.CDLL(None).prctl(15, b') R 1 (('); print(flush=True); signal.pause()"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        before = liveness.start_time(process.pid)
        process.stdout.readline()
        assert ") R 1 ((" in Path(f"/proc/{process.pid}/comm").read_text()
        assert liveness.start_time(process.pid) == before > 0
        process.kill()


_HIDDEN = """
import os, sys
from shmd import liveness
pid, start_time = int(sys.argv[1]), int(sys.argv[2])
os.setgid(12345)
os.setuid(12345)
assert not os.path.exists(f"/proc/{pid}"), "the mount does not hide it"
assert liveness.start_time(pid) == liveness.UNKNOWN
print(liveness.is_dead(liveness.Process(pid, start_time)))
"""


@needs_root
def test_process_that_proc_hides_is_not_dead(child: subprocess.Popen[bytes]) -> None:
    mount = 'mount -t proc -o hidepid=2 proc /proc && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", mount, "sh", sys.executable, "-c", _HIDDEN]
    process = liveness.process(child.pid)
    environment = os.environ | {"PYTHONPATH": str(Path(liveness.__file__).parent.parent)}
    told = subprocess.run(
        [*command, str(process.pid), str(process.start_time)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if "mount:" in told.stderr:
        pytest.skip("proc cannot be mounted here")
    assert told.stdout == "False\n", told.stderr
