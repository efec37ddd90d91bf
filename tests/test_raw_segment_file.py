"""Segments that are files: the same for their users, and still there after a reboot."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import shmd
from shmd import backing_file, file_store, inventory, limits
from shmd.config import DaemonConfig, default_state_dir, instance_id
from shmd.daemon import Daemon
from shmd.errors import (
    ClosedError,
    ConfigError,
    InvalidOption,
    SegmentInvalid,
    SegmentLimit,
    SegmentMismatch,
    SegmentRemoved,
)
from tests.test_raw_segment_survival import until

if TYPE_CHECKING:
    from shmd import Client
    from shmd.testing import Connect, DaemonProcess, StartDaemon

pytestmark = pytest.mark.may_block


def files_of(daemon: DaemonProcess) -> list[str]:
    return sorted(path.suffix for path in daemon.runtime_dir.rglob("segments/*"))


def left_in(directory: Path) -> list[Path]:
    return list(directory.rglob("*.data"))


def content_of(seg: shmd.Segment) -> bytes:
    return Path(seg.path).read_bytes()


def mode_of(seg: shmd.Segment) -> int:
    return Path(seg.path).stat().st_mode & 0o777


def mappings_of(path: str) -> int:
    return sum(line.endswith(path) for line in Path("/proc/self/maps").read_text().splitlines())


class TestUse:
    async def test_file_is_used_as_any_segment(self, shmd_connect: Connect) -> None:
        one, other = await shmd_connect(), await shmd_connect()
        async with (
            one.segment("frame", size=5000, backing="file") as mine,
            other.segment("frame", readonly=True) as theirs,
        ):
            assert bytes(mine.buf) == bytes(5000)
            mine.buf[:5] = b"hello"
            assert bytes(theirs.buf[:5]) == b"hello"
            assert theirs.buf.readonly
            assert content_of(mine)[:5] == b"hello"
            assert (mine.id, mine.key) == (-1, 0)
            waiting = asyncio.create_task(theirs.wait())
            await asyncio.sleep(0)
            mine.notify()
            await waiting
            await theirs.sync()
            with pytest.raises(SegmentInvalid):
                await one.segment("frame", size=5001)
            with pytest.raises(SegmentMismatch, match="backing 'file', not 'memory'"):
                await one.segment("frame", backing="memory")

    async def test_stat_tells_what_there_is_to_tell(self, shmd_client: Client) -> None:
        async with shmd_client.segment("frame", size=5000, backing="file", mode=0o640) as seg:
            found = seg.stat()
            assert (found.id, found.key, found.size_bytes, found.mode) == (-1, 0, 5000, 0o640)
            assert (found.uid, found.attachments, found.removed) == (os.getuid(), -1, False)
            told = await shmd_client.segment_stat("frame")
            assert told is not None
            assert (told.size_bytes, told.mode, told.id) == (5000, 0o640, -1)
            await seg.set(mode=0o600)
            assert (seg.stat().mode, mode_of(seg)) == (0o600, 0o600)

    async def test_file_is_mapped_once_and_given_back(self, shmd_client: Client) -> None:
        opened = [await shmd_client.segment("frame", size=5000, backing="file") for _ in range(3)]
        path = opened[0].path
        assert mappings_of(path) == 1
        view = opened[0].buf[:10]
        with pytest.raises(BufferError):
            await opened[0].close()
        view.release()
        for seg in opened:
            await seg.close()
        assert mappings_of(path) == 0
        with pytest.raises(ClosedError):
            await opened[0].sync()

    async def test_removed_file_stays_with_those_who_have_it(
        self, shmd_connect: Connect, shmd_daemon: DaemonProcess
    ) -> None:
        one, other = await shmd_connect(), await shmd_connect()
        async with one.segment("frame", size=100, backing="file") as mine, other.segment("frame") as theirs:
            await mine.remove()
            assert files_of(shmd_daemon) == []
            with pytest.raises(SegmentRemoved):
                await theirs.wait()
            mine.buf[0] = 7
            assert theirs.buf[0] == 7
            assert theirs.stat().removed

    async def test_file_that_somebody_deleted_is_noticed(self, shmd_client: Client, shmd_daemon: DaemonProcess) -> None:
        async with shmd_client.segment("frame", size=100, backing="file") as seg:
            os.unlink(seg.path)
            assert await shmd_client.segments() == []
            assert "segment frame is gone" in shmd_daemon.log
        assert files_of(shmd_daemon) == []

    @pytest.mark.parametrize(
        "options",
        [
            {"backing": "file", "key": 7},
            {"backing": "file", "lifetime": "attached"},
            {"sync": "interval"},
            {"backing": "file", "sync": "sometimes"},
        ],
    )
    async def test_options_that_cannot_be_are_refused(self, shmd_client: Client, options: dict[str, object]) -> None:
        with pytest.raises(InvalidOption):
            await shmd_client.segment("frame", size=1, **options)  # type: ignore[arg-type]


class TestSurvival:
    async def test_file_survives_a_reboot(self, shmd_start: StartDaemon) -> None:
        """A reboot is: every process is gone, every System V segment, the roster too, and the runtime files."""
        first = shmd_start(ephemeral=False)
        async with shmd.connect(first.socket_path) as client:
            async with client.segment("frame", size=5000, backing="file", mode=0o640, sync="interval") as seg:
                seg.buf[-5:] = b"hello"
                before = seg.info
            async with client.segment("memory", size=5000):
                pass
        first.kill()
        inventory.remove_instance(instance_id(first.instance, os.getuid()))
        last = shmd_start(instance=first.instance, runtime_dir=first.runtime_dir)
        async with shmd.connect(last.socket_path) as client:
            (info,) = await client.segments()
            assert (info.name, info.size_bytes, info.mode, info.sync) == ("frame", 5000, 0o640, "interval")
            assert (info.segment_id, info.path) == (before.segment_id, before.path)
            async with client.segment("frame", create=False) as seg:
                assert bytes(seg.buf[-5:]) == b"hello"
                async with seg.lock():
                    assert seg.lock().locked()
                await seg.remove()
        assert files_of(last) == []

    async def test_users_of_a_file_go_on_across_daemons(self, shmd_start: StartDaemon) -> None:
        first = shmd_start(ephemeral=False)
        async with shmd.connect(first.socket_path) as client:
            seg = await client.segment("frame", size=100, backing="file")
            back = asyncio.create_task(until(client, "reconnected"))
            await asyncio.sleep(0)
            first.kill()
            seg.buf[0] = 9
            shmd_start(instance=first.instance, runtime_dir=first.runtime_dir)
            await back
            await seg.sync()
            async with client.segment("frame", create=False) as again:
                assert (again.buf[0], mappings_of(seg.path)) == (9, 1)
            await seg.close()

    async def test_what_is_half_made_is_deleted_and_what_no_daemon_wrote_is_left_alone(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        directory = tmp_path / "state" / "segments"
        directory.mkdir(parents=True)
        for name in ("half.data", "half.new", "gone.json", "odd.json", "odd.data", "other.json", "other.data", "mine"):
            (directory / name).write_bytes(b"{}")
        async with (
            Daemon(DaemonConfig(runtime_dir=tmp_path, ephemeral=True)) as daemon,
            shmd.connect(daemon.socket_path) as client,
        ):
            assert await client.segments() == []
        left = sorted(path.name for path in directory.iterdir())
        assert left == ["mine", "odd.data", "odd.json", "other.data", "other.json"]
        assert "odd.json is left alone" in caplog.text

    async def test_file_that_was_cut_short_is_not_mapped(self, tmp_path: Path) -> None:
        """Beyond a file's end there is no memory but SIGBUS."""
        config = DaemonConfig(runtime_dir=tmp_path, ephemeral=False)
        async with Daemon(config) as daemon, shmd.connect(daemon.socket_path) as client:
            async with client.segment("frame", size=5000, backing="file") as seg:
                path = seg.path
            os.truncate(path, 10)
            assert await client.segments() == []
        assert left_in(tmp_path) == []


class TestSync:
    async def test_file_is_synced_at_intervals(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "FILE_SYNC_INTERVAL_S", 0.001)
        synced = asyncio.Event()
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(backing_file, "sync", lambda _fd: loop.call_soon_threadsafe(synced.set))
        config = DaemonConfig(runtime_dir=tmp_path, ephemeral=True)
        async with Daemon(config) as daemon, shmd.connect(daemon.socket_path) as client:
            async with client.segment("other", size=1, backing="file"):
                pass
            assert not synced.is_set()
            async with client.segment("frame", size=1, backing="file", sync="interval"):
                await synced.wait()
                synced.clear()
                await synced.wait()

    async def test_nobody_is_woken_before_the_bytes_are_on_the_disk(
        self, shmd_client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        done: list[str] = []
        monkeypatch.setattr(backing_file, "sync", lambda _fd: done.append("synced"))
        async with shmd_client.segment("frame", size=1, backing="file", sync="always") as seg:
            seg.notify()
            await seg.wait()
            assert done == ["synced"]

    async def test_sync_of_memory_is_done_at_once(self, shmd_client: Client) -> None:
        async with shmd_client.segment("frame", size=1) as seg:
            await seg.sync()


def test_full_disk_is_found_out_before_anybody_dies_of_it(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b") as file, pytest.raises(SegmentLimit, match="are free"):
        backing_file.allocate(file.fileno(), 2**62)


def test_directory_that_cannot_be_looked_into_is_a_config_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "segments").mkdir()

    def refuse(_path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(ConfigError, match="--state-dir"):
        file_store.find(tmp_path)


def test_state_directory_is_the_systems_the_users_or_beside_the_runtime_directory(tmp_path: Path) -> None:
    assert default_state_dir({}, uid=0) == Path("/var/lib/shmd")
    assert default_state_dir({"STATE_DIRECTORY": "/a:/b"}, uid=5) == Path("/a")
    assert default_state_dir({"XDG_STATE_HOME": "/home/x/s"}, uid=5) == Path("/home/x/s/shmd")
    assert default_state_dir({"HOME": "/home/x"}, uid=5) == Path("/home/x/.local/state/shmd")
    assert default_state_dir({}, uid=5) == Path("/var/lib/shmd")
    assert DaemonConfig(runtime_dir=tmp_path).state_dir == tmp_path / "state"
    assert DaemonConfig(runtime_dir=tmp_path, instance="x").instance_state_dir == tmp_path / "state" / "x"
    with pytest.raises(ConfigError, match="state_dir"):
        DaemonConfig(state_dir=Path("/" + "x" * 300))
