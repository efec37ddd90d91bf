"""The pytest plugin on tests of its users: what it gives them, and that it fails those that leave something behind."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shmd.testing import DaemonFailed, DaemonProcess, Resources, assert_no_leaks

LEAK_CHECK = """
    import pathlib
    import pytest

    @pytest.fixture
    def shmd_leak_directories():
        return (pathlib.Path("watched").absolute(),)

    @pytest.fixture(autouse=True)
    def no_leaks(shmd_leak_check):
        pass
"""


@pytest.fixture
def user(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A user's project, whose tests run in a process of their own."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parent.parent))
    announced = any(point.value == "shmd.testing" for point in importlib.metadata.entry_points(group="pytest11"))
    pytester.mkdir("watched")
    pytester.makeini("[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n")
    pytester.makeconftest(LEAK_CHECK if announced else LEAK_CHECK + '    pytest_plugins = ["shmd.testing"]\n')
    return pytester


def run(user: pytest.Pytester, test: str, **outcomes: int) -> pytest.RunResult:
    user.makepyfile(test)
    result = user.runpytest_subprocess("-p", "no:randomly", "-p", "no:cacheprovider", "-rA")
    result.assert_outcomes(**outcomes)
    return result


def test_plugin_gives_a_client_of_a_daemon_of_the_tests_own(user: pytest.Pytester) -> None:
    test = """
        seen = set()

        async def exchange(client, daemon):
            assert client.instance == daemon.instance
            assert await client.topics() == []
            seen.add(daemon.instance)
            async with client.publisher("t") as publisher, client.subscribe("t") as subscription:
                await publisher.publish({"a": 1})
                assert (await subscription.get()).value == {"a": 1}

        async def test_one(shmd_client, shmd_daemon):
            await exchange(shmd_client, shmd_daemon)

        async def test_another(shmd_client, shmd_daemon):
            await exchange(shmd_client, shmd_daemon)

        def test_they_differ():
            assert len(seen) == 2
    """
    run(user, test, passed=3)


def test_plugin_connects_further_clients_and_closes_them(user: pytest.Pytester) -> None:
    test = """
        clients = []

        async def test_two(shmd_connect):
            clients.extend([await shmd_connect(), await shmd_connect(name="second")])
            assert [client.state for client in clients] == ["connected", "connected"]

        def test_closed():
            assert [client.state for client in clients] == ["closed", "closed"]
    """
    run(user, test, passed=2)


@pytest.mark.parametrize(
    ("leak", "kind", "give_back"),
    [
        ("open('/dev/null')", "descriptors", "leak.close()"),
        ("subprocess.Popen(['sleep', '60'])", "processes", "leak.kill(); leak.wait()"),
        ("sysv_ipc.SharedMemory(None, sysv_ipc.IPC_CREX, size=1)", "segments", "leak.detach(); leak.remove()"),
        ("sysv_ipc.Semaphore(None, sysv_ipc.IPC_CREX)", "semaphores", "leak.remove()"),
        ("tempfile.mkdtemp(dir='watched')", "files", "os.rmdir(leak)"),
    ],
    ids=["descriptor", "process", "segment", "semaphore", "file"],
)
def test_plugin_fails_the_test_that_leaves_something_behind(
    user: pytest.Pytester, leak: str, kind: str, give_back: str
) -> None:
    test = f"""
        import os
        import subprocess
        import sysv_ipc
        import tempfile

        def test_tidy():
            pass

        def test_leaks():
            global leak
            leak = {leak}

        def test_tidy_again():
            pass

        def test_gives_it_back():
            {give_back}
    """
    result = run(user, test, passed=4, errors=1)
    result.stdout.fnmatch_lines([f"*left behind by *::test_leaks: {kind}: *"])


def test_plugin_removes_and_reports_what_a_killed_daemon_left(user: pytest.Pytester) -> None:
    test = """
        async def test_kills(shmd_client, shmd_daemon):
            await shmd_client.topic("t")
            shmd_daemon.kill()

        async def test_next(shmd_client):
            assert await shmd_client.topics() == []
    """
    result = run(user, test, passed=2)
    result.stdout.fnmatch_lines(["*removed after daemon *: shmid *, shmid *, shmid *"])


def test_plugin_fails_the_test_whose_daemon_died_by_itself(user: pytest.Pytester) -> None:
    test = """
        import os, signal

        async def test_daemon_dies(shmd_client, shmd_daemon):
            await shmd_client.topic("t")
            os.kill(shmd_daemon.pid, signal.SIGSEGV)
            shmd_daemon.process.wait()

        async def test_next(shmd_client):
            pass
    """
    result = run(user, test, passed=2, errors=1)
    result.stdout.fnmatch_lines(["*the daemon ended with status -11*", "*listening on*"])


def test_daemon_process_stopped_by_the_test_is_gone(shmd_daemon: DaemonProcess) -> None:
    assert shmd_daemon.stop() == 0
    assert not Path(shmd_daemon.socket_path).exists()


def test_daemon_process_that_cannot_start_says_why() -> None:
    with assert_no_leaks(), pytest.raises(DaemonFailed, match=r"(?s)status 2 before it was ready.*--nonsense"):
        DaemonProcess.start("--nonsense")


def test_daemon_process_that_is_not_ready_in_time_is_killed() -> None:
    with assert_no_leaks(), pytest.raises(DaemonFailed, match="not ready after 0 s"):
        DaemonProcess.start(timeout_s=0)


def test_daemon_process_finds_a_short_directory_where_tmpdir_is_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    daemon = DaemonProcess.start()
    try:
        assert not daemon.socket_path.startswith(str(long))
    finally:
        daemon.close()
    assert not list(long.iterdir())


def test_resources_do_not_blame_this_process_for_others_segments() -> None:
    """Another process tree, as of a user who happens to work on this host, makes a segment meanwhile."""
    code = (
        "import os, sys, sysv_ipc\n"
        "if os.fork(): os._exit(0)\n"  # its child has init for a parent
        "os.setsid()\n"
        "memory = sysv_ipc.SharedMemory(None, sysv_ipc.IPC_CREX, size=1)\n"
        "print(memory.id, flush=True)\n"
        "sys.stdin.read()\n"
        "memory.detach(); memory.remove()\n"
    )
    before = Resources.now()
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as stranger:
        assert stranger.stdout is not None
        shmid = int(stranger.stdout.readline())
        assert shmid in Resources.now().segments
        assert not before.leaks().segments
        stranger.communicate()
    assert not before.leaks()


def test_resources_count_files_only_where_told(tmp_path: Path) -> None:
    (tmp_path / "before").touch()
    with assert_no_leaks(tmp_path):
        (tmp_path / "passing").touch()
        (tmp_path / "passing").unlink()
    with pytest.raises(AssertionError, match=r"files: .*left"), assert_no_leaks(tmp_path):
        (tmp_path / "left").touch()


def test_leak_check_does_not_hide_the_error_of_its_block() -> None:
    with pytest.raises(ZeroDivisionError), assert_no_leaks(), open(os.devnull) as _:
        raise ZeroDivisionError
