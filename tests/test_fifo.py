"""FIFOs: whose they are, what is left of them, and what may happen to them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import signal
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import shmd
from shmd import _core, fifo, inventory, limits, segment
from shmd.config import instance_id
from tests.children import STRANGER_GID, become_stranger, in_child, needs_root
from tests.local_topic import drain, local_topic
from tests.loop_turns import turns, until
from tests.restarts import Restarts

if TYPE_CHECKING:
    from shmd.testing import Connect, DaemonProcess, StartDaemon

pytestmark = pytest.mark.may_block

ROOT = Path(__file__).parent.parent
SMALL = limits.TOPIC_SIZE_BYTES_MIN


def permissions(path: Path) -> tuple[int, int, int]:
    found = path.lstat()
    return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)


def names(directory: str | Path) -> set[str]:
    return set(os.listdir(directory))


def is_rung(fd: int) -> bool:
    """Whether its FIFO holds something, which is taken out."""
    try:
        return bool(os.read(fd, limits.FIFO_BYTES))
    except BlockingIOError:
        return False


class TestPaths:
    @pytest.mark.parametrize(("mode", "of_fifo"), [(0o600, 0o600), (0o640, 0o660), (0o644, 0o666), (0o660, 0o660)])
    async def test_fifos_have_the_owner_group_and_mode_of_the_ctl(
        self, shmd_client: shmd.Client, mode: int, of_fifo: int
    ) -> None:
        async with (
            shmd_client.publisher("t", notifier="fifo", mode=mode) as publisher,
            shmd_client.subscribe("t"),
        ):
            info = publisher.info
            directory = Path(info.fifo_dir)
            assert names(directory) == {"r0", f"p{publisher.number}"}
            for name in names(directory):
                assert stat.S_ISFIFO((directory / name).lstat().st_mode)
                assert permissions(directory / name) == (info.uid, info.gid, of_fifo)
            for path in (directory, directory.parent):
                assert permissions(path) == (os.geteuid(), os.getegid(), 0o711)

    @needs_root
    def test_a_groups_fifos_are_given_to_the_group(self, tmp_path: Path) -> None:
        fifo.make(tmp_path / "r0", STRANGER_GID, 0o660)
        assert permissions(tmp_path / "r0") == (0, STRANGER_GID, 0o660)

    @needs_root
    def test_fifos_for_a_group_that_the_daemon_is_not_in_are_refused(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o777)
        tmp_path.parent.chmod(0o755)

        def make() -> tuple[str, str]:
            os.chdir(tmp_path)
            become_stranger()
            fifo.make(Path("all"), 0, 0o666)  # it does not matter which group it is
            with pytest.raises(shmd.PermissionDenied, match="no member of group 0") as refused:
                fifo.make(Path("some"), 0, 0o660)
            return str(refused.value), ",".join(sorted(os.listdir(".")))

        message, left = in_child(make)
        assert "use the notifier eventfd" in message
        assert left == "all"

    def test_path_that_is_too_long_to_tell_is_refused(self) -> None:
        with pytest.raises(shmd.LimitExceeded, match=f"the limit is {limits.FIFO_DIR_BYTES_MAX}"):
            fifo.topic_dir(Path("/" + "x" * 250), bytes(16))


class TestNothingLeft:
    async def test_fifos_go_with_participants_topic_and_daemon(self, shmd_start: StartDaemon) -> None:
        daemon = shmd_start(ephemeral=False)
        async with shmd.connect(daemon.socket_path) as client:
            publisher = await client.publisher("t", notifier="fifo")
            subscription = await client.subscribe("t")
            directory = Path(publisher.info.fifo_dir)
            await subscription.close()
            assert names(directory) == {f"p{publisher.number}"}
            await publisher.close()
            assert names(directory) == set()
            await client.remove("t")
            assert directory.name not in names(directory.parent)
            await client.topic("t", notifier="fifo")
        daemon.stop()
        successor = shmd_start(instance=daemon.instance, runtime_dir=daemon.runtime_dir)
        successor.stop()
        assert list(daemon.runtime_dir.glob("**/fifo")) == []

    async def test_fifos_of_all_who_were_killed_are_gone_after_a_restart(self, shmd_start: StartDaemon) -> None:
        daemon = shmd_start()
        code = (
            "import asyncio, sys, shmd\n"
            "async def main():\n"
            "    async with shmd.connect(sys.argv[1]) as client:\n"
            "        publisher = await client.publisher('t', notifier='fifo')\n"
            "        subscription = await client.subscribe('t')\n"
            "        print(publisher.info.fifo_dir, flush=True)\n"
            "        await asyncio.sleep(3600)\n"
            "asyncio.run(main())\n"
        )
        participant = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", code, daemon.socket_path),
            stdout=asyncio.subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        assert participant.stdout is not None
        directory = Path((await participant.stdout.readline()).decode().strip())
        assert len(names(directory)) == 2
        daemon.kill()
        participant.kill()
        await participant.wait()
        (directory.parent / f"t-{'0' * 32}").mkdir()
        (directory / "r77").touch()
        shmd_start(instance=daemon.instance, runtime_dir=daemon.runtime_dir)
        await until(lambda: names(directory) == set())
        assert names(directory.parent) == {directory.name}

    async def test_purge_without_a_daemon_removes_them(self, shmd_start: StartDaemon) -> None:
        daemon = shmd_start(ephemeral=False)
        async with shmd.connect(daemon.socket_path) as client:
            info = await client.topic("t", notifier="fifo")
        daemon.stop()
        root = Path(info.fifo_dir).parent
        assert root.exists()
        assert inventory.remove_instance(instance_id(daemon.instance, os.getuid()), root.parent)
        assert not root.exists()

    async def test_descriptors_are_flat_and_grants_carry_none(
        self, shmd_client: shmd.Client, shmd_daemon: DaemonProcess
    ) -> None:
        def descriptors() -> tuple[int, int]:
            return len(os.listdir("/proc/self/fd")), len(os.listdir(f"/proc/{shmd_daemon.pid}/fd"))

        await shmd_client.topic("t", notifier="fifo")
        before = descriptors()
        for _ in range(50):
            async with shmd_client.publisher("t") as publisher, shmd_client.subscribe("t") as subscription:
                reading = asyncio.create_task(subscription.get())
                await turns()
                await publisher.publish(1)
                await reading
        assert descriptors() == before


class TestReplaced:
    def replace(self, path: Path, what: str) -> None:
        path.unlink(missing_ok=True)
        if what == "file":
            path.write_text("no FIFO")
        elif what == "symlink":
            os.mkfifo(path.with_name("target"))
            path.symlink_to("target")
        elif what == "directory":
            path.mkdir()

    @pytest.mark.parametrize("what", ["file", "symlink", "directory", "nothing"])
    def test_what_is_no_fifo_is_not_opened(self, tmp_path: Path, what: str) -> None:
        self.replace(tmp_path / "r0", what)
        with pytest.raises(shmd.PermissionDenied, match="r0") as refused:
            fifo.open_fifo(tmp_path / "r0")
        assert refused.value.hint

    @pytest.mark.parametrize("what", ["file", "symlink", "directory"])
    def test_ringing_what_is_no_fifo_harms_nobody(self, what: str) -> None:
        with local_topic(fifo=True) as topic:
            sleeper, other = topic.cursor(0), topic.cursor(1)
            for cursor in (sleeper, other):
                assert cursor.seek_new()
                assert cursor.join()
                assert cursor.arm()
            ear = topic.ear("r1")
            self.replace(topic.fifos / "r0", what)
            assert topic.appender().append(b"x") == 1
            assert is_rung(ear)
            assert drain(sleeper)[0].raw == b"x"

    @pytest.mark.parametrize("what", ["file", "symlink", "directory"])
    def test_daemon_puts_a_fifo_where_something_else_is(self, tmp_path: Path, what: str) -> None:
        self.replace(tmp_path / "r0", what)
        fifo.make(tmp_path / "r0", os.getgid(), 0o600)
        os.close(fifo.open_fifo(tmp_path / "r0"))

    async def test_participant_that_cannot_open_its_fifo_is_told_and_holds_nothing(
        self, shmd_client: shmd.Client
    ) -> None:
        info = await shmd_client.topic("t", notifier="fifo")
        directory = Path(info.fifo_dir)
        os.rmdir(directory)
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(shmd.PermissionDenied, match="runtime directory"):
            await shmd_client.publisher("t")
        with pytest.raises(shmd.PermissionDenied, match="runtime directory"):
            await shmd_client.subscribe("t")
        stat = await shmd_client.stat("t")
        assert stat is not None
        assert (stat.publishers, stat.subscribers) == ((), ())
        assert len(os.listdir("/proc/self/fd")) == before

    async def test_daemon_that_comes_back_makes_what_somebody_removed(self) -> None:
        restarts = Restarts()
        try:
            async with (
                shmd.connect(restarts.socket_path) as client,
                client.publisher("t", notifier="fifo") as publisher,
                client.subscribe("t") as subscription,
            ):
                directory = Path(publisher.info.fifo_dir)
                await restarts.kill(client)
                shutil.rmtree(directory.parent)
                await restarts.start(client)
                await until(lambda: not client._hub.adrift)  # from here on only FIFOs wake
                assert names(directory) == {"r0", f"p{publisher.number}"}
                reading = asyncio.create_task(subscription.get())
                await turns()
                await publisher.publish("here")
                assert (await reading).value == "here"
        finally:
            restarts.close()


class TestRinging:
    async def test_full_fifo_wakes_its_reader_and_holds_up_nobody(self, shmd_client: shmd.Client) -> None:
        async with (
            shmd_client.publisher("t", notifier="fifo") as publisher,
            shmd_client.subscribe("t") as subscription,
        ):
            fd = os.open(Path(publisher.info.fifo_dir) / "r0", os.O_RDWR | os.O_NONBLOCK)
            for number in range(20):
                with contextlib.suppress(BlockingIOError):
                    while True:
                        os.write(fd, bytes(limits.FIFO_BYTES))
                reading = asyncio.create_task(subscription.get())
                await turns()
                await publisher.publish(number)
                assert (await reading).value == number
            os.close(fd)

    def test_only_who_is_marked_is_rung_and_once_for_each_sleep(self) -> None:
        with local_topic(fifo=True) as topic:
            asleep, awake = topic.cursor(0), topic.cursor(1)
            ears = [topic.ear("r0"), topic.ear("r1")]
            for cursor in (asleep, awake):
                assert cursor.seek_new()
                assert cursor.join()
            appender = topic.appender()
            assert asleep.arm()
            for _ in range(3):
                assert appender.append(b"x") > 0
            assert os.read(ears[0], 10) == b"\0"
            assert not is_rung(ears[1])
            assert not asleep.arm()  # there is something to read: its mark goes at once
            assert awake.arm() is False
            assert appender.append(b"x") > 0
            assert [is_rung(ear) for ear in ears] == [False, False]

    def test_dead_sleeper_raises_no_sigpipe_in_programs_that_do_not_ignore_it(self) -> None:
        with local_topic(fifo=True) as topic:
            cursor = topic.cursor(0)
            assert cursor.seek_new()
            assert cursor.join()
            assert cursor.arm()
            appender = topic.appender()
            before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            try:
                assert appender.append(b"x") == 1
                assert not cursor.arm()
            finally:
                signal.signal(signal.SIGPIPE, before)

    @pytest.mark.parametrize("closed", [(), (0,), (0, 1, 2)])
    def test_ringer_without_a_free_descriptor_rings_all_the_same(self, closed: tuple[int, ...]) -> None:
        def ring() -> tuple[bool, bool, int, list[int]]:
            for fd in closed:
                os.close(fd)
            with local_topic(fifo=True) as topic:
                cursors = [topic.cursor(slot) for slot in range(2)]
                ears = [topic.ear(f"r{slot}") for slot in range(2)]
                for cursor in cursors:
                    assert cursor.seek_new()
                    assert cursor.join()
                    assert cursor.arm()
                appender = topic.appender()
                _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
                resource.setrlimit(resource.RLIMIT_NOFILE, (max(ears) + 1, hard))
                taken = []
                with contextlib.suppress(OSError):
                    while True:
                        taken.append(os.dup(ears[0]))
                assert appender.append(b"x") == 1
                rung = is_rung(ears[0]), is_rung(ears[1])
                with pytest.raises(ChildProcessError):
                    os.waitpid(-1, 0)
                for fd in taken:
                    os.close(fd)
                return *rung, signal.pthread_sigmask(signal.SIG_BLOCK, []) == set(), [fd for fd in ears if fd < 0]

        assert in_child(ring) == (True, True, True, [])

    def test_ringer_that_may_have_no_descriptor_leaves_it_to_the_next(self) -> None:
        with local_topic(fifo=True) as topic:
            cursor = topic.cursor(0)
            assert cursor.seek_new()
            assert cursor.join()
            ear = topic.ear("r0")
            assert cursor.arm()
            appender = topic.appender()
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
            try:
                assert appender.append(b"x") == 1
                assert not topic.log.ring_readers(topic.bell)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert not is_rung(ear)
            assert appender.append(b"x") == 2
            assert is_rung(ear)

    def test_publisher_that_finds_no_place_among_the_waiters_knows_that_nobody_will_ring(self) -> None:
        offset, size = _core.layout()["ctl"]["waiters"]
        with local_topic(4096, wait=True, fifo=True) as topic:
            cursor = topic.cursor(0)
            assert cursor.seek_new()
            assert cursor.join()
            ear = topic.ear("p1")
            appender = topic.appender()
            while appender.append(bytes(500)) > 0:
                pass
            places = range(offset, offset + size, 8)
            for place in places:
                _core.store_word(topic.ctl_segment.mapping, place, 7 << 32 | 1)
            assert appender.arm_space()
            assert appender.unheard
            assert drain(cursor)
            assert not is_rung(ear)
            assert all(_core.load_word(topic.ctl_segment.mapping, place) == 0 for place in places), "all are dead"
            while appender.append(bytes(500)) > 0:
                pass
            assert appender.arm_space()
            assert not appender.unheard
            assert drain(cursor)
            assert is_rung(ear)

    async def test_publisher_without_a_place_among_the_waiters_looks_by_itself(
        self, shmd_client: shmd.Client, shmd_connect: Connect
    ) -> None:
        offset, size = _core.layout()["ctl"]["waiters"]
        other = await shmd_connect()
        async with (
            shmd_client.publisher("t", notifier="fifo", when_full="wait", size=SMALL) as publisher,
            other.subscribe("t") as subscription,
        ):
            with contextlib.suppress(shmd.TopicFull):
                while True:
                    publisher.publish_nowait("filler")
            with segment.attach(publisher.info.ctl_id, readonly=False) as ctl:
                for place in range(offset, offset + size, 8):
                    _core.store_word(ctl.mapping, place, 1 << 63 | 1)
            waiting = asyncio.create_task(publisher.publish("last"))
            await until(lambda: publisher._seat.appender.unheard)
            values: list[Any] = []
            while "last" not in values:
                values.append((await subscription.get()).value)
            await waiting
