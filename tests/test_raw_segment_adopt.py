"""Programs written by the classic recipe (ftok, shmget, shmat, shmdt, ipcrm) and shmd, on the same segments."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

import shmd
from shmd import segment, sysv
from shmd.errors import (
    InvalidOption,
    PermissionDenied,
    SegmentExists,
    SegmentInvalid,
    SegmentNotFound,
    SegmentRemoved,
)
from shmd.segment_options import make_key
from tests.children import become_stranger, in_child, needs_root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shmd import Client
    from shmd.testing import DaemonProcess, StartDaemon

pytestmark = [
    pytest.mark.may_block,
    pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler"),
]
SOURCES: Final = Path(__file__).parent / "c" / "classic"
PROJECT: Final = "S"
HIGH: Final = 200
HIGH_ARGUMENT: Final = os.fsdecode(bytes([HIGH]))
"""What makes a negative key in C, and as an argument: a byte that is a negative char."""


@pytest.fixture(scope="session")
def classic(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Compiles and runs a classic program; what it prints."""
    directory = tmp_path_factory.mktemp("classic")

    def run(name: str, *arguments: object) -> str:
        program = directory / name
        if not program.exists():
            subprocess.run(["cc", "-Wall", "-Werror", "-o", program, SOURCES / f"{name}.c"], check=True)
        command = [str(program), *map(str, arguments)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    return run


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "here"
    path.touch()
    return path


@pytest.fixture
def foreign(classic: Callable[..., str], file: Path) -> Iterator[int]:
    """Id of a segment that a C program made, with ``hello`` in it."""
    shmid = int(classic("shmwrite", file, PROJECT, 100, "hello"))
    yield shmid
    if any(found.id == shmid for found in sysv.list_segments()):
        segment.remove(shmid)


async def test_classic_programs_write_and_read_what_shmd_made(
    shmd_client: Client, classic: Callable[..., str], file: Path
) -> None:
    async with shmd_client.segment("frame", size=100, ftok=(file, PROJECT)) as seg:
        assert int(classic("shmwrite", file, PROJECT, 100, "from C")) == seg.id
        assert bytes(seg.buf[:7]) == b"from C\0"
        seg.buf[:12] = b"from Python\0"
        assert classic("shmread", file, PROJECT) == "from Python"
        assert seg.stat().attachments == 1


async def test_ipcrm_of_a_classic_user_is_noticed(
    shmd_client: Client, shmd_daemon: DaemonProcess, classic: Callable[..., str], file: Path
) -> None:
    async with shmd_client.segment("frame", size=100, ftok=(file, PROJECT)) as seg:
        subprocess.run(["ipcrm", "-m", str(seg.id)], check=True)  # noqa: ASYNC221 - it is quick
        assert await shmd_client.segments() == []
        assert f"segment frame is gone: somebody removed it (id {seg.id}, key {seg.key:#x})" in shmd_daemon.log
        with pytest.raises(SegmentRemoved):
            await seg.wait()
        other = int(classic("shmwrite", file, PROJECT, 100, "another"))
        assert other != seg.id
        segment.remove(other)


async def test_key_that_is_negative_in_c_is_shared_with_classic_programs(
    shmd_client: Client, classic: Callable[..., str], file: Path
) -> None:
    async with shmd_client.segment("frame", size=100, ftok=(file, HIGH)) as seg:
        assert seg.key >> 24 == HIGH
        assert seg.stat().key == seg.info.sem_key == seg.key
        assert int(classic("shmwrite", file, HIGH_ARGUMENT, 100, "from C")) == seg.id
        assert bytes(seg.buf[:7]) == b"from C\0"
        async with seg.lock(), shmd_client.segment("frame", key=seg.key - 2**32) as again:
            assert again.id == seg.id
        await seg.remove()


class TestAdoption:
    async def test_segment_with_a_key_that_is_negative_in_c_is_adopted_and_found_again(
        self, shmd_start: StartDaemon, classic: Callable[..., str], file: Path
    ) -> None:
        shmid = int(classic("shmwrite", file, HIGH_ARGUMENT, 100, "hello"))
        first = shmd_start(ephemeral=False)
        async with shmd.connect(first.socket_path) as client:
            await (await client.segment("theirs", ftok=(file, HIGH), adopt=True)).close()
        first.kill()
        last = shmd_start(instance=first.instance, runtime_dir=first.runtime_dir)
        async with shmd.connect(last.socket_path) as client, client.segment("theirs", create=False) as seg:
            assert (seg.id, seg.key, bytes(seg.buf[:6])) == (shmid, make_key(file, HIGH), b"hello\0")
            await seg.remove()

    async def test_foreign_segment_is_opened_by_a_name_from_then_on(
        self, shmd_client: Client, file: Path, foreign: int
    ) -> None:
        async with shmd_client.segment("theirs", ftok=(file, PROJECT), adopt=True) as seg:
            assert (seg.id, seg.size_bytes, bytes(seg.buf[:6])) == (foreign, 100, b"hello\0")
            assert seg.info.adopted
        async with shmd_client.segment("theirs", create=False) as seg:
            assert seg.id == foreign
            await seg.remove()
        assert foreign not in {found.id for found in sysv.list_segments()}

    async def test_foreign_segment_is_not_taken_unasked(self, shmd_client: Client, file: Path, foreign: int) -> None:
        with pytest.raises(SegmentExists):
            await shmd_client.segment("theirs", size=1, ftok=(file, PROJECT))
        assert sysv.stat(foreign).attachments == 0

    async def test_adoption_makes_one_where_there_is_none_if_it_may(self, shmd_client: Client, file: Path) -> None:
        with pytest.raises(SegmentNotFound, match="to be adopted"):
            await shmd_client.segment("theirs", ftok=(file, PROJECT), adopt=True, create=False)
        async with shmd_client.segment("theirs", size=10, ftok=(file, PROJECT), adopt=True) as seg:
            assert (seg.info.adopted, seg.key) == (False, make_key(file, PROJECT))

    async def test_larger_wish_than_what_is_there_is_refused(
        self, shmd_client: Client, file: Path, foreign: int
    ) -> None:
        with pytest.raises(SegmentInvalid, match="100 bytes, not 101"):
            await shmd_client.segment("theirs", size=101, ftok=(file, PROJECT), adopt=True)
        with pytest.raises(InvalidOption):
            await shmd_client.segment("theirs", adopt=True)

    async def test_segment_that_shmd_has_is_not_adopted(self, shmd_client: Client) -> None:
        info = await shmd_client.topic("t")
        async with shmd_client.segment("frame", size=1) as seg:
            for key in (seg.key, info.log_key, info.ctl_key):
                with pytest.raises(SegmentExists):
                    await shmd_client.segment("theirs", key=key, adopt=True)

    async def test_adopted_segment_is_found_again_and_outlives_the_last_daemon(
        self, shmd_start: StartDaemon, file: Path, foreign: int
    ) -> None:
        first = shmd_start(ephemeral=False)
        async with shmd.connect(first.socket_path) as client:
            await (await client.segment("theirs", ftok=(file, PROJECT), adopt=True)).close()
        first.kill()
        before = sysv.stat(foreign)
        last = shmd_start(instance=first.instance, runtime_dir=first.runtime_dir)
        async with shmd.connect(last.socket_path) as client, client.segment("theirs", create=False) as seg:
            assert (seg.id, seg.info.adopted, bytes(seg.buf[:5])) == (foreign, True, b"hello")
        last.stop()
        after = sysv.stat(foreign)
        assert (after.uid, after.gid, after.mode, after.change_time) == (
            before.uid,
            before.gid,
            before.mode,
            before.change_time,
        )

    @needs_root
    def test_stranger_may_not_adopt_and_an_owner_may(
        self, shmd_daemon: DaemonProcess, file: Path, foreign: int
    ) -> None:
        shmd_daemon.runtime_dir.chmod(0o711)
        Path(shmd_daemon.socket_path).chmod(0o666)
        key = make_key(file, PROJECT)
        segment.set_permissions(foreign, 0, 0, 0o666)

        async def refused() -> str:
            become_stranger()
            async with shmd.connect(shmd_daemon.socket_path) as client:
                with pytest.raises(PermissionDenied) as raised:
                    await client.segment("theirs", key=key, adopt=True)
                return str(raised.value)

        async def adopt_own() -> tuple[int, int]:
            become_stranger()
            with segment.create(100, key=key + 1) as mine:
                mine.buf[0] = 7
            async with (
                shmd.connect(shmd_daemon.socket_path) as client,
                client.segment("mine", key=key + 1, adopt=True) as seg,
            ):
                found = seg.buf[0], seg.info.declared_by
                await seg.set(mode=0o640)
                assert seg.stat().mode == 0o640
                await seg.remove()
                return found

        assert not re.search(rf"\b{foreign}\b", in_child(lambda: asyncio.run(refused())).replace("uid 60001", ""))
        assert in_child(lambda: asyncio.run(adopt_own()))[0] == 7
