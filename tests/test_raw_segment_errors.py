"""Every refusal of shmget, shmat and shmctl as it reaches a client: provoked for real, with class, errno, and hint."""

from __future__ import annotations

import asyncio
import errno
import multiprocessing
import resource
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import shmd
from shmd import segment
from shmd.config import DaemonConfig
from shmd.daemon import Daemon
from shmd.errors import (
    PermissionDenied,
    SegmentAccessDenied,
    SegmentError,
    SegmentExists,
    SegmentInvalid,
    SegmentLimit,
    SegmentNoMemory,
    SegmentNotFound,
    SegmentRemoved,
)
from tests.children import become_stranger, enter_ipc_namespace, in_child, needs_root

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

pytestmark = [pytest.mark.may_block, needs_root]

STATM = Path("/proc/self/statm")
ROSTER_BYTES = 8 << 20
"""More than a roster takes."""


def address_space_bytes() -> int:
    return int(STATM.read_text().split()[0]) * resource.getpagesize()


def refused_in_namespace(
    tmp_path: Path, scenario: Callable[[shmd.Client], Awaitable[Any]], **kernel_limits: int
) -> tuple[type[SegmentError], int | None, str, str]:
    """Class, errno, message and hint of what ``scenario`` raises, with a daemon and a client alone in a namespace."""

    async def play() -> tuple[type[SegmentError], int | None, str, str]:
        enter_ipc_namespace(**kernel_limits)
        async with (
            Daemon(DaemonConfig(runtime_dir=tmp_path, ephemeral=True)) as daemon,
            shmd.connect(daemon.socket_path) as client,
        ):
            with pytest.raises(SegmentError) as raised:
                await scenario(client)
        return type(raised.value), raised.value.errno, raised.value.message, raised.value.hint or ""

    return in_child(lambda: asyncio.run(play()))


def test_segment_over_shmmax_is_invalid_and_the_hint_names_the_limit(tmp_path: Path) -> None:
    kind, number, message, hint = refused_in_namespace(
        tmp_path, lambda client: client.segment("s", size=ROSTER_BYTES + 1), shmmax=ROSTER_BYTES
    )
    assert (kind, number) == (SegmentInvalid, errno.EINVAL)
    assert str(ROSTER_BYTES + 1) in message
    assert f"kernel.shmmax is {ROSTER_BYTES}" in hint


def test_one_segment_too_many_is_a_limit_and_the_hint_names_shmmni(tmp_path: Path) -> None:
    async def crowd(client: shmd.Client) -> None:
        for number in range(6):
            await client.segment(f"s{number}", size=1)

    kind, number, message, hint = refused_in_namespace(tmp_path, crowd, shmmni=5)
    assert (kind, number) == (SegmentLimit, errno.ENOSPC)
    assert "create a segment of 1 bytes" in message
    assert "kernel.shmmni is 5" in hint
    assert "sysctl kernel.shmmni=10" in hint


def test_one_page_too_many_is_a_limit_and_the_hint_names_shmall(tmp_path: Path) -> None:
    pages = 4096
    kind, number, _, hint = refused_in_namespace(
        tmp_path, lambda client: client.segment("s", size=pages * 4096), shmall=pages
    )
    assert (kind, number) == (SegmentLimit, errno.ENOSPC)
    assert f"kernel.shmall is {pages}" in hint


def test_address_space_that_does_not_do_is_no_memory(tmp_path: Path) -> None:
    async def starve(client: shmd.Client) -> None:
        async with client.segment("s", size=256 << 20):
            pass
        used = address_space_bytes()
        resource.setrlimit(resource.RLIMIT_AS, (used + (128 << 20), resource.RLIM_INFINITY))
        try:
            await client.segment("s")
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    kind, number, message, hint = refused_in_namespace(tmp_path, starve)
    assert (kind, number) == (SegmentNoMemory, errno.ENOMEM)
    assert "attach segment" in message
    assert "ulimit -v" in hint


def test_name_and_key_that_are_taken_exist(tmp_path: Path) -> None:
    async def twice(client: shmd.Client) -> None:
        seg = await client.segment("s", size=1, exclusive=True)
        with pytest.raises(SegmentExists) as by_name:
            await client.segment("s", size=1, exclusive=True)
        assert (by_name.value.errno, by_name.value.hint) == (errno.EEXIST, "open it without exclusive=True")
        await client.segment("other", size=1, key=seg.key)

    kind, number, _, hint = refused_in_namespace(tmp_path, twice)
    assert (kind, number) == (SegmentExists, errno.EEXIST)
    assert "take another key" in hint


def test_segment_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    kind, number, message, hint = refused_in_namespace(tmp_path, lambda client: client.segment("s", create=False))
    assert (kind, number, message, hint) == (
        SegmentNotFound,
        errno.ENOENT,
        "there is no segment 's'",
        "create it first",
    )


def test_segment_that_was_removed_under_its_user_is_removed(tmp_path: Path) -> None:
    async def remove(client: shmd.Client) -> None:
        async with client.segment("s", size=1) as seg:
            await seg.remove()
            await seg.wait()

    kind, number, _, hint = refused_in_namespace(tmp_path, remove)
    assert (kind, number) == (SegmentRemoved, errno.EIDRM)
    assert "stays until it is closed" in hint


@pytest.fixture
def open_dir() -> Iterator[Path]:
    """A directory that a stranger can use, which ``tmp_path`` lies too deep for."""
    with tempfile.TemporaryDirectory(prefix="shmd-", dir="/tmp") as name:
        path = Path(name)
        path.chmod(0o777)
        yield path


def test_user_whose_rights_were_taken_away_is_denied(open_dir: Path) -> None:
    """The kernel asks at each shmat and shmctl; who is attached already stays so."""

    async def watch(socket_path: str) -> tuple[type[SegmentError], int | None, str]:
        become_stranger()
        async with shmd.connect(socket_path) as client, client.segment("s", readonly=True) as seg:
            assert seg.stat().mode == 0o644
            seg.notify()  # the owner takes the rights away, and notifies
            while True:
                await seg.wait()
                try:
                    seg.stat()
                except SegmentError as error:
                    assert bytes(seg.buf) == bytes(1)
                    return type(error), error.errno, error.hint or ""

    async def play() -> tuple[type[SegmentError], int | None, str]:
        config = DaemonConfig(runtime_dir=open_dir, ephemeral=True)
        async with (
            Daemon(config) as daemon,
            shmd.connect(daemon.socket_path) as client,
            client.segment("s", size=1, mode=0o644) as seg,
        ):
            path = str(daemon.socket_path)
            watching = asyncio.create_task(asyncio.to_thread(in_child, lambda: asyncio.run(watch(path))))
            waiting = asyncio.create_task(seg.wait())
            await asyncio.wait([waiting, watching], return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            segment.set_permissions(seg.id, 0, 0, 0o600)
            seg.notify()
            return await watching

    kind, number, hint = asyncio.run(play())
    assert (kind, number) == (SegmentAccessDenied, errno.EACCES)
    assert "permission bits" in hint


def test_daemon_that_may_not_change_what_it_adopted_says_so(open_dir: Path) -> None:
    """shmctl would say EPERM; root may have any daemon adopt, but the daemon's user is what the kernel asks about."""
    key = 0x5EED_0002

    async def as_daemon(ready: Any, done: Any) -> None:
        become_stranger()
        async with Daemon(DaemonConfig(runtime_dir=open_dir, ephemeral=True)):
            ready.set()
            await asyncio.to_thread(done.wait)

    async def adopt() -> list[str]:
        async with shmd.connect(open_dir / "control.sock") as client:
            async with client.segment("theirs", key=key, adopt=True) as seg:
                refusals = []
                for work in (seg.set(mode=0o644), seg.remove()):
                    with pytest.raises(PermissionDenied) as refused:
                        await work
                    refusals.append(str(refused.value))
            return refusals

    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    with segment.create(100, key=key, mode=0o600) as foreign:
        process = context.Process(target=lambda: asyncio.run(as_daemon(ready, done)))
        process.start()
        assert ready.wait(60)
        refusals = asyncio.run(adopt())
        done.set()
        process.join()
        assert process.exitcode == 0
        assert segment.stat(foreign.id).mode == 0o600
        assert all("adopted" in text and f"ipcrm -m {foreign.id}" in text for text in refusals)
        segment.remove(foreign.id)
