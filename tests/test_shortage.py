"""When memory will not do, for real: each limit in the daemon's way, and what its client is told about it.

An error names the limit, its value and the largest size that fits; and that size then fits.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import shmd
from shmd import limits, memory
from shmd.errors import SegmentInvalid, SegmentLimit, ShmdError
from shmd.sysv import list_segments
from shmd.testing import DaemonProcess
from shmd.topic_store import CTL_BYTES, log_bytes
from tests.children import enter_ipc_namespace, in_child, needs_root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MIB = limits.MIB
PAGE = os.sysconf("SC_PAGE_SIZE")
CTL_PAGES = -(-CTL_BYTES // PAGE)


async def refusal_and_what_fits(socket_path: str, topic: str, size: int) -> ShmdError:
    """What a topic of this size is refused with; the largest size that the hint names has to work."""
    async with shmd.connect(socket_path) as client:
        with pytest.raises(ShmdError) as refused:
            await client.topic(topic, size=size)
        assert await client.stat(topic) is None
        assert refused.value.hint is not None
        if fits := re.search(r"at most (\d+ [KMG]iB) fit", refused.value.hint):
            info = await client.topic(topic, size=fits[1])
            await client.remove(topic)
            with pytest.raises(ShmdError):
                await client.topic(topic, size=2 * info.size_bytes)
    return refused.value


@dataclass
class Usage:
    """What an IPC namespace held when the limit was set, and how its daemon refused then."""

    segments: int
    pages: int
    error: ShmdError


def refusal_under(size: int, limit: str, value: Callable[[int, int], int]) -> Usage:
    """Set a limit of a daemon's IPC namespace, to a value that follows from its segments and pages, and be refused."""

    def refused() -> Usage:
        enter_ipc_namespace()
        daemon = DaemonProcess.start()
        try:
            asyncio.run(_declare(daemon.socket_path, "first"))  # with its first topic a daemon gets its lasting roster
            found = list_segments()
            segments, pages = len(found), sum(-(-one.size_bytes // PAGE) for one in found)
            Path("/proc/sys/kernel", limit).write_text(str(value(segments, pages)))
            return Usage(segments, pages, asyncio.run(refusal_and_what_fits(daemon.socket_path, "t", size)))
        finally:
            daemon.close()

    return in_child(refused)


async def _declare(socket_path: str, topic: str) -> None:
    async with shmd.connect(socket_path) as client:
        await client.topic(topic, size=limits.TOPIC_SIZE_BYTES_MIN)


@needs_root
class TestKernelLimits:
    def test_topic_over_shmmax_is_told_the_largest_that_fits(self) -> None:
        error = refusal_under(16 * MIB, "shmmax", lambda _segments, _pages: 5 * MIB).error
        assert isinstance(error, SegmentInvalid)
        command = f"sysctl kernel.shmmax={log_bytes(16 * MIB)}"
        assert error.hint == f"kernel.shmmax is {5 * MIB} bytes: at most 4 MiB fit; raise it with: {command}"

    @pytest.mark.parametrize("more", [0, 1])
    def test_topic_over_shmmni_is_told_how_many_there_can_be(self, more: int) -> None:
        """Whether its log or only its ctl is one too many."""
        usage = refusal_under(MIB, "shmmni", lambda segments, _: segments + more)
        assert isinstance(usage.error, SegmentLimit)
        limit = usage.segments + more
        assert usage.error.hint == (
            f"{usage.segments} segments exist and kernel.shmmni is {limit}; "
            f"raise it with: sysctl kernel.shmmni={2 * limit}"
        )

    def test_topic_over_shmall_is_told_the_largest_that_fits_with_its_ctl(self) -> None:
        room_pages = 1 + 2 * MIB // PAGE + CTL_PAGES
        usage = refusal_under(4 * MIB, "shmall", lambda _, pages: pages + room_pages)
        assert isinstance(usage.error, SegmentLimit)
        limit = usage.pages + room_pages
        assert usage.error.hint == (
            f"{usage.pages} pages are in use and kernel.shmall is {limit}: "
            f"at most 2 MiB fit; raise it with: sysctl kernel.shmall={limit + 2 * MIB // PAGE}"
        )

    def test_topic_whose_ctl_does_not_fit_is_told_of_one_that_does(self) -> None:
        usage = refusal_under(2 * MIB, "shmall", lambda _, pages: pages + 1 + 2 * MIB // PAGE)
        assert usage.error.hint is not None
        assert "at most 1 MiB fit" in usage.error.hint


def test_topic_over_the_byte_budget_is_told_the_largest_that_fits() -> None:
    daemon = DaemonProcess.start("--max-bytes", "5MiB")
    try:
        error = asyncio.run(refusal_and_what_fits(daemon.socket_path, "t", 8 * MIB))
    finally:
        daemon.close()
    assert isinstance(error, shmd.LimitExceeded)
    assert f"of the limit of {5 * MIB} are free" in error.message
    assert error.hint == "at most 4 MiB fit; remove some topics or segments, or serve with a higher --max-bytes"


@contextlib.contextmanager
def small_cgroup(limit_bytes: int) -> Iterator[Path]:
    """A memory cgroup with this limit, of either version; skips where none can be made."""
    for mount in memory._cgroup_mounts(memory.PROC):
        file = "memory.max" if mount.kind == "cgroup2" else "memory.limit_in_bytes"
        directory = mount.point / f"shmd-test-{os.getpid()}"
        with contextlib.suppress(OSError):
            directory.mkdir()
            try:
                (directory / file).write_text(str(limit_bytes))
            except OSError:
                directory.rmdir()
                continue
            try:
                yield directory
            finally:
                directory.rmdir()
            return
    pytest.skip("no memory cgroup can be made here")


@needs_root
def test_topic_over_the_cgroups_limit_is_refused_and_the_daemon_lives() -> None:
    with small_cgroup(64 * MIB) as directory:
        daemon = DaemonProcess.start()
        try:
            (directory / "cgroup.procs").write_text(str(daemon.pid))
            error = asyncio.run(refusal_and_what_fits(daemon.socket_path, "t", 256 * MIB))
            assert isinstance(error, shmd.LimitExceeded)
            assert f"of {directory}, which is {64 * MIB} bytes" in error.message
            assert error.hint is not None
            assert "at most 32 MiB fit; raise it with: echo " in error.hint
            assert daemon.process.poll() is None
        finally:
            daemon.close()


@needs_root
def test_client_in_another_ipc_namespace_is_told_so_and_how_to_share_it(shmd_daemon: DaemonProcess) -> None:
    async def connect() -> None:
        await (await shmd.connect(shmd_daemon.socket_path)).close()

    def strangers() -> ShmdError:
        enter_ipc_namespace()
        with pytest.raises(shmd.NamespaceMismatch) as refused:
            asyncio.run(connect())
        return refused.value

    ours = os.stat("/proc/self/ns/ipc").st_ino
    error = in_child(strangers)
    assert re.search(rf"the client is in IPC namespace \d+, the daemon in {ours}", error.message)
    assert error.hint is not None
    assert "--ipc=host" in error.hint
    assert f"nsenter --ipc -t {shmd_daemon.pid}" in error.hint
