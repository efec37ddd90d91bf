"""Segments whose notify bell is a FIFO: a bell that counts, which C programs and shells share."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import stat
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

import shmd
from shmd import fifo, inventory, limits
from shmd.config import instance_id
from shmd.errors import SegmentRemoved
from tests.c_programs import STRICT
from tests.children import STRANGER_GID, needs_root
from tests.loop_turns import turns, until
from tests.restarts import Restarts

if TYPE_CHECKING:
    from shmd import Segment
    from shmd.testing import Connect, StartDaemon
    from tests.shell import Shell

pytestmark = pytest.mark.may_block

ROOT: Final = Path(__file__).parent.parent


def fifo_of(segment: Segment) -> Path:
    assert segment.fifo is not None
    return segment.fifo


def run(*command: str) -> None:
    subprocess.run(command, check=True)


def pending(segment: Segment) -> int:
    """How many bytes there are; they are taken out."""
    fd = os.open(fifo_of(segment), os.O_RDWR | os.O_NONBLOCK)
    try:
        return len(os.read(fd, 1 << 20))
    except BlockingIOError:
        return 0
    finally:
        os.close(fd)


class TestPath:
    async def test_fifo_has_the_owner_group_and_mode_that_readers_need(self, shmd_client: shmd.Client) -> None:
        async with shmd_client.segment("s", size=1, notifier="fifo", mode=0o640) as segment:
            path = fifo_of(segment)
            assert path.name == f"s-{segment.info.segment_id.hex()}"
            found = path.lstat()
            assert stat.S_ISFIFO(found.st_mode)
            assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (os.geteuid(), os.getegid(), 0o660)

    @pytest.mark.parametrize("backing", ["memory", "file"])
    @needs_root
    async def test_fifo_follows_the_segment(self, shmd_client: shmd.Client, backing: shmd.protocol.Backing) -> None:
        async with shmd_client.segment("s", size=1, notifier="fifo", backing=backing) as segment:
            await segment.set(mode=0o604, gid=STRANGER_GID)
            found = fifo_of(segment).lstat()
            assert (found.st_gid, found.st_mode & 0o777) == (STRANGER_GID, 0o606)
            await segment.remove()

    async def test_segment_without_one_says_so(self, shmd_client: shmd.Client) -> None:
        async with shmd_client.segment("s", size=1) as segment:
            assert segment.fifo is None
            with pytest.raises(shmd.InvalidOption, match='only notifier="fifo" counts'):
                segment.notify(2)
        with pytest.raises(shmd.SegmentMismatch, match="eventfd"):
            await shmd_client.segment("s", notifier="fifo")
        with pytest.raises(shmd.InvalidOption, match="notifier cannot be 'bell'"):
            await shmd_client.segment("t", size=1, notifier="bell")  # type: ignore[arg-type]

    async def test_user_who_cannot_open_it_is_told_and_holds_nothing(self, shmd_client: shmd.Client) -> None:
        async with shmd_client.segment("s", size=1, notifier="fifo") as segment:
            path = fifo_of(segment)
        path.unlink()
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(shmd.PermissionDenied, match="runtime directory"):
            await shmd_client.segment("s")
        assert len(os.listdir("/proc/self/fd")) == before


class TestCounting:
    async def test_each_notify_ends_one_wait(self, shmd_client: shmd.Client, shmd_connect: Connect) -> None:
        other = await shmd_connect()
        async with (
            shmd_client.segment("s", size=1, notifier="fifo") as mine,
            other.segment("s", readonly=True) as theirs,
        ):
            waits = [asyncio.create_task(segment.wait()) for segment in (mine, theirs) for _ in range(4)]
            await turns()
            assert not [wait for wait in waits if wait.done()]
            for count in (1, 3):
                done = sum(wait.done() for wait in waits)
                mine.notify(count)
                await until(lambda done=done, count=count: sum(wait.done() for wait in waits) == done + count)  # type: ignore[misc]
                await turns()
            assert sum(wait.done() for wait in waits) == 4
            theirs.notify(4)
            await asyncio.gather(*waits)
            assert pending(mine) == 0

    async def test_bytes_wait_for_those_who_come_later(self, shmd_client: shmd.Client) -> None:
        async with shmd_client.segment("s", size=1, notifier="fifo") as segment:
            segment.notify(2)
        async with shmd_client.segment("s") as segment:
            await segment.wait()
            await segment.wait()
            assert pending(segment) == 0

    async def test_cancelled_wait_has_taken_none(self, shmd_client: shmd.Client) -> None:
        async with shmd_client.segment("s", size=1, notifier="fifo") as segment:
            for rounds in range(6):
                waiting = asyncio.create_task(segment.wait())
                await turns()
                segment.notify()
                for _ in range(rounds):
                    await asyncio.sleep(0)
                waiting.cancel()
                (result,) = await asyncio.gather(waiting, return_exceptions=True)
                assert pending(segment) == (0 if result is None else 1)

    async def test_full_fifo_is_said_and_nobody_is_half_notified(self, shmd_client: shmd.Client) -> None:
        async with shmd_client.segment("s", size=1, notifier="fifo") as segment:
            put = 0
            with contextlib.suppress(shmd.NotifierFull):
                while True:
                    segment.notify(limits.NOTIFY_COUNT_MAX)
                    put += limits.NOTIFY_COUNT_MAX
            with pytest.raises(shmd.NotifierFull, match="nobody was notified"):
                segment.notify()
            assert put >= 61440
            assert pending(segment) == put
            for count in (0, limits.NOTIFY_COUNT_MAX + 1):
                with pytest.raises(shmd.InvalidOption, match="from 1 to 4096"):
                    segment.notify(count)

    async def test_idle_loop_does_not_turn_for_bytes_that_nobody_wants(self, shmd_client: shmd.Client) -> None:
        async with shmd_client.segment("s", size=1, notifier="fifo") as segment:
            segment.notify(3)
            await turns()
            assert select.select([shmd_client._hub._bells.fileno()], [], [], 0)[0] == []
            assert pending(segment) == 3

    async def test_removed_segment_ends_waits(self, shmd_client: shmd.Client) -> None:
        async with shmd_client.segment("s", size=1, notifier="fifo") as segment:
            waiting = asyncio.create_task(segment.wait())
            await turns()
            await segment.remove()
            with pytest.raises(SegmentRemoved):
                await waiting
            assert not fifo_of(segment).exists()


C_WORKER: Final = r"""
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>
/* Take bytes, saying so of each, until one that is 'q'. */
int main(int argc, char **argv) {
    char byte = 0;
    int fd = argc == 2 ? open(argv[1], O_RDWR) : -1;
    while (fd >= 0 && read(fd, &byte, 1) == 1 && byte != 'q') {
        puts("job");
        fflush(stdout);
    }
    return byte == 'q' ? 0 : 1;
}
"""
PYTHON_WORKER: Final = """
import asyncio, sys, shmd
async def main():
    async with shmd.connect(sys.argv[1]) as client, client.segment("s", create=False) as segment:
        while True:
            await segment.wait()
            print("job", flush=True)
asyncio.run(main())
"""


class TestOtherPrograms:
    async def test_shell_notifies_and_waits(self, shmd_client: shmd.Client) -> None:
        async with shmd_client.segment("s", size=1, notifier="fifo") as segment:
            path = str(fifo_of(segment))
            run("bash", "-c", 'printf xy > "$0"', path)
            await segment.wait()
            await segment.wait()
            segment.notify(2)
            for _ in range(2):
                run("bash", "-c", 'read -r -d "" -n1 < "$0"', path)
            assert pending(segment) == 0

    async def test_workers_in_python_and_c_take_each_job_once(
        self, shmd_client: shmd.Client, shmd_daemon: shmd.testing.DaemonProcess, tmp_path: Path
    ) -> None:
        source, program = tmp_path / "worker.c", tmp_path / "worker"
        source.write_text(C_WORKER)
        run("cc", *STRICT.split(), str(source), "-o", str(program))
        jobs, taken = 2000, Counter[str]()
        async with shmd_client.segment("s", size=1, notifier="fifo") as segment:
            path = str(fifo_of(segment))
            commands = {
                "c": [str(program), path],
                "python": [sys.executable, "-c", PYTHON_WORKER, shmd_daemon.socket_path],
            }
            environment = os.environ | {"PYTHONPATH": str(ROOT)}
            workers = {
                f"{kind} {number}": await asyncio.create_subprocess_exec(
                    *command, stdout=subprocess.PIPE, env=environment
                )
                for kind, command in commands.items()
                for number in range(2)
            }

            async def count(name: str, worker: asyncio.subprocess.Process) -> None:
                assert worker.stdout is not None
                async for _ in worker.stdout:
                    taken[name] += 1

            counting = [asyncio.create_task(count(name, worker)) for name, worker in workers.items()]
            for batch in (1, 9, 90, 900, 1000):
                segment.notify(batch)
                await asyncio.sleep(0)
            await until(lambda: taken.total() == jobs)
            for name, worker in workers.items():
                if name.startswith("python"):
                    worker.kill()
                    await worker.wait()
            fd = os.open(path, os.O_RDWR)
            os.write(fd, b"qq")
            assert [await worker.wait() for name, worker in workers.items() if name.startswith("c ")] == [0, 0]
            os.close(fd)
            await asyncio.gather(*counting)
            assert taken.total() == jobs
            assert pending(segment) == 0

    def test_command_line_creates_shows_notifies_and_waits(self, shell: Shell) -> None:
        shell.run("segment", "create", "s", "--size", "1", "--notifier", "fifo")
        path = shell.run("segment", "stat", "s").partition("notifier        fifo ")[2].splitlines()[0]
        assert stat.S_ISFIFO(Path(path).lstat().st_mode)
        shell.run("segment", "notify", "s", "--count", "2")
        for _ in range(2):
            shell.run("segment", "wait", "s")
        assert "nobody notified" in shell.run("segment", "wait", "s", "--timeout", "50ms", status=1)


class TestSurvival:
    async def test_restarted_daemon_goes_on_with_it_and_makes_it_if_it_is_missing(self) -> None:
        restarts = Restarts()
        try:
            async with (
                shmd.connect(restarts.socket_path) as client,
                client.segment("s", size=1, notifier="fifo", mode=0o640) as segment,
            ):
                segment.notify()
                await restarts.restart(client)
                await until(lambda: segment._seat.client == client._hub.link.welcome.client)
                await segment.wait()  # the byte was still there
                waiting = asyncio.create_task(segment.wait())
                await restarts.kill(client)
                path = fifo_of(segment)
                path.unlink()
                stray = path.with_name(f"s-{'0' * 32}")
                os.mkfifo(stray)
                await restarts.start(client)
                await until(lambda: path.exists())
                assert path.lstat().st_mode & 0o777 == 0o660
                assert not stray.exists()
                await turns()
                assert not waiting.done()

                await until(lambda: os.fstat(segment._seat._bells.notify_fd).st_ino == path.stat().st_ino)
                run("bash", "-c", 'printf x > "$0"', str(path))
                await waiting
                assert (await client.segments())[0].fifo == str(path)
        finally:
            restarts.close()

    async def test_fifos_go_with_segments_and_daemon(self, shmd_start: StartDaemon) -> None:
        daemon = shmd_start(ephemeral=False)
        async with shmd.connect(daemon.socket_path) as client:
            async with client.segment("a", size=1, notifier="fifo", lifetime="attached") as segment:
                root = fifo_of(segment).parent
                gone = fifo_of(segment)
            await until(lambda: not gone.exists())
            for name in ("b", "c"):
                async with client.segment(name, size=1, notifier="fifo"):
                    pass
            await client.remove_segment("b")
            assert len(os.listdir(root)) == 1
        daemon.stop()
        assert len(os.listdir(root)) == 1
        assert inventory.remove_instance(instance_id(daemon.instance, os.getuid()), root.parent)
        assert not root.exists()

    def test_sweep_knows_them(self, tmp_path: Path) -> None:
        kept = fifo.segment_path(tmp_path, bytes(16))
        for path in (kept, fifo.segment_path(tmp_path, b"x" * 16)):
            fifo.make(path, os.getegid(), 0o600)
        assert fifo.sweep(tmp_path, {kept}) == [fifo.segment_path(tmp_path, b"x" * 16)]
        assert os.listdir(tmp_path) == [kept.name]
