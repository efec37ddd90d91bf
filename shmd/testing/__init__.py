"""pytest fixtures for programs that use shmd: a real daemon per test, connected clients, and a leak check.

The plugin is registered by installing shmd. Each ``shmd_daemon`` is a ``python -m shmd serve`` process with a runtime
directory and an instance of its own, so that tests see neither each other's topics nor those of the host's daemon.

    async def test_prices_arrive(shmd_client):
        async with shmd_client.subscribe("prices") as subscription, shmd_client.publisher("prices") as publisher:
            await publisher.publish({"px": 101.25})
            assert (await subscription.get()).value == {"px": 101.25}

The async fixtures need pytest-asyncio. ``shmd_leak_check`` fails a test that leaves anything behind: make it autouse.
Files count in the directories that you let ``shmd_leak_directories`` return.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from shmd.testing.daemon_process import DaemonFailed, DaemonProcess
from shmd.testing.resources import Leaks, Resources, assert_no_leaks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    import shmd

__all__ = ["Connect", "DaemonFailed", "DaemonProcess", "Leaks", "Resources", "StartDaemon", "assert_no_leaks"]


class StartDaemon(Protocol):
    """Type of the fixture ``shmd_start``."""

    def __call__(
        self, *arguments: str, instance: str | None = None, runtime_dir: Path | None = None, ephemeral: bool = True
    ) -> DaemonProcess: ...


class Connect(Protocol):
    """Type of the fixture ``shmd_connect``."""

    async def __call__(self, path: str | None = None, **options: Any) -> shmd.Client: ...


@pytest.fixture
def shmd_leak_directories() -> tuple[Path, ...]:
    """Where ``shmd_leak_check`` counts files; none, unless a fixture of this name in your ``conftest.py`` says so."""
    return ()


@pytest.fixture
def shmd_leak_check(request: pytest.FixtureRequest, shmd_leak_directories: tuple[Path, ...]) -> Iterator[None]:
    """Fails the test, after the teardown of the fixtures requested after this one, if something is left behind.

    Make it the first fixture of a test, or autouse in a ``conftest.py``.
    """
    before = Resources.now(*shmd_leak_directories)
    yield
    if leaks := before.leaks():
        pytest.fail(f"left behind by {request.node.nodeid}: {leaks}", pytrace=False)


@pytest.fixture
def shmd_start(request: pytest.FixtureRequest) -> Iterator[StartDaemon]:
    """A function that starts daemons (see ``DaemonProcess.start``), all stopped and cleaned up after the test."""
    daemons: list[DaemonProcess] = []

    def start(
        *arguments: str, instance: str | None = None, runtime_dir: Path | None = None, ephemeral: bool = True
    ) -> DaemonProcess:
        daemons.append(DaemonProcess.start(*arguments, instance=instance, runtime_dir=runtime_dir, ephemeral=ephemeral))
        return daemons[-1]

    with contextlib.ExitStack() as stack:
        stack.callback(_close_daemons, daemons, request.node)
        yield start


@pytest.fixture
def shmd_daemon(shmd_start: StartDaemon) -> DaemonProcess:
    """A running daemon of the test's own: ``socket_path``, ``pid``, ``instance``, ``log``, ``stop()``, ``kill()``."""
    return shmd_start()


async def _connect_fixture(shmd_daemon: DaemonProcess) -> AsyncIterator[Connect]:
    """A coroutine function that connects a further client to ``shmd_daemon``; all are closed after the test."""
    import shmd

    async with contextlib.AsyncExitStack() as stack:

        async def connect(path: str | None = None, **options: Any) -> shmd.Client:
            return await stack.enter_async_context(shmd.connect(path or shmd_daemon.socket_path, **options))

        yield connect


async def _client_fixture(shmd_connect: Connect) -> shmd.Client:
    """A client connected to ``shmd_daemon``."""
    return await shmd_connect()


try:
    import pytest_asyncio
except ImportError:  # the daemon and the leak check are of use without it
    pass
else:
    shmd_connect = pytest_asyncio.fixture(_connect_fixture, name="shmd_connect")
    shmd_client = pytest_asyncio.fixture(_client_fixture, name="shmd_client")


def _close_daemons(daemons: list[DaemonProcess], item: pytest.Item) -> None:
    failures = []
    for daemon in reversed(daemons):
        try:
            if leftovers := daemon.close():
                item.add_report_section("teardown", "shmd", f"removed after daemon {daemon.pid}: {leftovers}")
        except DaemonFailed as failure:
            failures.append(str(failure))
    if failures:
        pytest.fail("\n".join(failures), pytrace=False)
