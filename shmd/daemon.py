"""The daemon of one instance: its lock, its socket, its beginning and its end.

    async with Daemon(DaemonConfig(...)) as daemon:
        await daemon.serve_forever()

It can be embedded in any program with an event loop, asyncio's or uvloop's. It touches the file system only when it
starts and ends, and installs no signal handlers: whoever runs it ends it with ``stop``, by cancelling
``serve_forever`` or by leaving the block. What it does for its clients is in ``broker``.

Its topics outlive it. What there is, and who takes part, stands in its ``roster``, which the instance's next daemon
finds; ``adoption`` tells how it goes on from there, and ``bell_store`` how their bells do.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import resource
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self

from shmd import adoption, fifo, liveness, places, systemd, topic_store
from shmd.bell_store import BellStore, is_stored_bell
from shmd.broker import Broker
from shmd.errors import ConfigError, UsageError
from shmd.listener import Listener
from shmd.policy import Credentials
from shmd.registry import Identity, Quotas, Registry
from shmd.roster import Roster, open_roster

if TYPE_CHECKING:
    from types import TracebackType

    from shmd.config import DaemonConfig

logger = logging.getLogger(__name__)


class Daemon:
    """A running shmd. An async context manager: entering it listens, leaving it hangs up and gives everything back."""

    def __init__(self, config: DaemonConfig) -> None:
        self._config = config
        self._resources = AsyncExitStack()
        self._listener: Listener | None = None
        self._broker: Broker | None = None
        self._closed = asyncio.Event()

    @property
    def socket_path(self) -> Path:
        """Where it listens: as configured, or the service manager's choice where that opened the socket."""
        return self._listener.path if self._listener else self._config.socket_path

    async def start(self) -> None:
        """Lock the instance and listen. Clients are served from now on, whenever the loop runs.

        ``ConfigError`` if another daemon runs this instance, or the socket cannot be there, and ``VersionMismatch`` if
        the one before it was of another version; then nothing is left open.
        Raises this process's limit of descriptors to its hard limit, and leaves it there. ``UsageError`` the second
        time.
        """
        if self._listener is not None:
            raise UsageError("this daemon was started already", "make another Daemon")
        async with AsyncExitStack() as undo:
            loop = asyncio.get_running_loop()
            _raise_descriptor_limit()
            undo.callback(os.close, _lock_instance(self._config))
            sockets, bells = _inherit()
            undo.push_async_callback(asyncio.to_thread, bells.close)
            roster = open_roster(self._config.instance, self._config.instance_id())
            undo.callback(roster.close, remove=self._config.ephemeral)
            fifo_root = fifo.root_of(self._config.instance_dir)
            undo.callback(fifo.remove_empty, fifo_root)
            broker = self._broker = self._make_broker(loop, roster, bells, fifo_root)
            undo.push_async_callback(broker.close, remove=self._config.ephemeral)
            self._listener = _listen(loop, self._config, broker, sockets)
            undo.callback(self._listener.close)
            self._resources = undo.pop_all()
        logger.info("listening on %s", self.socket_path)

    def _make_broker(
        self, loop: asyncio.AbstractEventLoop, roster: Roster, bells: BellStore, fifo_root: Path
    ) -> Broker:
        """With all that the daemon before left."""
        generation = roster.take_over()
        estate = adoption.adopt(roster, bells, fifo_root, self._config.instance_state_dir)
        if estate.topics:
            logger.info("adopted %d topics with %d participants", len(estate.topics), len(estate.participants))
        broker = Broker(
            loop,
            Registry(_identity(self._config, roster), _quotas(self._config)),
            roster,
            bells,
            generation=generation,
            instance_id=self._config.instance_id(),
            fifo_root=fifo_root,
            state_dir=self._config.instance_state_dir,
            on_stop=self.stop,
        )
        broker.adopt(estate)
        return broker

    async def serve_forever(self) -> None:
        """Tell the service manager, if there is one, that the daemon is ready; return when it is closed, or shall be.

        Cancelling it tells the manager that the daemon is stopping; the daemon then waits to be closed.
        """
        await asyncio.to_thread(systemd.notify, systemd.READY, systemd.status(f"listening on {self.socket_path}"))
        interval_s = systemd.watchdog_interval_s()
        try:
            while True:
                try:
                    async with asyncio.timeout(interval_s):
                        await self._closed.wait()
                    return
                except TimeoutError:
                    await asyncio.to_thread(systemd.notify, systemd.WATCHDOG)
        finally:
            await asyncio.to_thread(systemd.notify, systemd.STOPPING)

    def stop(self, why: str) -> None:
        """Have ``serve_forever`` return; the log says ``why``, and what stays. After the first time it does nothing."""
        if self._closed.is_set() or self._broker is None:
            return
        self._closed.set()
        topics, segments = self._broker.holdings()
        fate = "go with it" if self._config.ephemeral else "stay for the next daemon"
        logger.info("stopping: %s; %d topics and %d segments %s", why, topics, segments, fate)

    async def close(self) -> None:
        """Stop listening, hang up on all clients, and unlock the instance. Topics stay, unless the daemon is ephemeral.

        Twice is fine.
        """
        self.stop("the program that runs it has closed it")
        self._closed.set()
        await self._resources.aclose()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


def _raise_descriptor_limit() -> None:
    """A client costs one descriptor and a topic two: the soft limit of 1024 is for programs that call select()."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _lock_instance(config: DaemonConfig) -> int:
    """Become the one daemon of this instance until the returned descriptor is closed. ``ConfigError`` if there is one.

    The file stays: were it removed, two daemons could lock two files of the same name.
    """
    path = config.lock_path
    places.claim(config.runtime_dir)
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise ConfigError(f"cannot open {path}: {error.strerror}", "choose another --runtime-dir") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(fd)
        raise ConfigError(
            f"instance {config.instance!r} has a daemon already (pid {holder}, lock {path})",
            "stop it, or give this one another --instance or --runtime-dir",
        ) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def _inherit() -> tuple[list[int], BellStore]:
    """The sockets that the service manager listens on, and the bells that it kept."""
    inherited = systemd.inherited_descriptors()
    sockets = [one.fd for one in inherited if not is_stored_bell(one)]
    return sockets, BellStore(filter(is_stored_bell, inherited))


def _listen(loop: asyncio.AbstractEventLoop, config: DaemonConfig, broker: Broker, sockets: list[int]) -> Listener:
    if len(sockets) > 1:
        raise ConfigError(f"the service manager passed {len(sockets)} sockets", "leave one in the socket unit")
    if sockets:
        return Listener.adopt(loop, sockets[0], broker.accept)
    return Listener.bind(loop, config.socket_path, broker.accept, mode=config.socket_mode)


def _identity(config: DaemonConfig, roster: Roster) -> Identity:
    return Identity(
        instance=config.instance,
        instance_id=config.instance_id(),
        credentials=Credentials(
            *(os.geteuid(), os.getegid(), os.getpid(), frozenset(os.getgroups())), liveness.start_time(os.getpid())
        ),
        ipc_namespace=Path("/proc/self/ns/ipc").stat().st_ino,
        topic_overhead_bytes=topic_store.OVERHEAD_BYTES,
        roster_id=roster.id,
    )


def _quotas(config: DaemonConfig) -> Quotas:
    return Quotas(
        clients=config.clients_max,
        clients_per_uid=config.clients_per_uid_max,
        topics=config.topics_max,
        total_bytes=config.total_bytes,
        file_bytes=config.file_bytes,
    )
