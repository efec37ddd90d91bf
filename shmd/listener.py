"""The accepting side of a control socket: listening, taking connections, and knowing whose they are."""

from __future__ import annotations

import array
import ctypes
import errno
import logging
import os
import socket
import stat
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Final

from shmd import limits, liveness
from shmd.errors import ConfigError
from shmd.policy import Credentials

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from typing import Self

logger = logging.getLogger(__name__)

_SO_PEERGROUPS: Final = 59
_SO_PEERPIDFD: Final = 77
_GETSOCKOPT_BYTES_MAX: Final = 1024
"""What CPython's getsockopt takes for a buffer."""
_GROUPS_MAX: Final = 65_536
"""NGROUPS_MAX of the kernel."""
_UCRED: Final = struct.Struct("iII")
_INT_BYTES: Final = struct.calcsize("i")
_PATH_BYTES_MAX: Final = 107
"""``sun_path`` without its terminator."""


class Listener:
    """Accepts connections on a Unix socket and hands each, non-blocking, to ``on_connect``, which then owns it."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        on_connect: Callable[[socket.socket], None],
        own_file: os.stat_result | None = None,
    ) -> None:
        """Take over a listening ``sock``; ``close`` removes its file if that is still ``own_file``."""
        sock.setblocking(False)
        self.path: Path = Path(os.fsdecode(sock.getsockname()))
        self._loop = loop
        self._sock = sock
        self._on_connect = on_connect
        self._own_file = own_file
        self._pause: asyncio.TimerHandle | None = None
        self._closed = False
        loop.add_reader(sock.fileno(), self._on_acceptable)

    @classmethod
    def bind(
        cls,
        loop: asyncio.AbstractEventLoop,
        path: Path,
        on_connect: Callable[[socket.socket], None],
        *,
        mode: int = 0o666,
    ) -> Self:
        """Listen at ``path``, in place of a socket that nobody listens on any more.

        The caller holds the instance's lock, so that no other daemon does the same. ``ConfigError`` if something else
        is there, or the path cannot be a socket's. Everybody may connect (``mode``): it is the daemon that decides who
        may do what.
        """
        if len(os.fsencode(path)) > _PATH_BYTES_MAX:
            raise ConfigError(f"{path} is too long for a socket", f"at most {_PATH_BYTES_MAX} bytes")
        _remove_stale(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.bind(os.fspath(path))
            own_file = path.lstat()
            path.chmod(mode)
            sock.listen(limits.LISTEN_BACKLOG)
            return cls(loop, sock, on_connect, own_file)
        except OSError as error:
            sock.close()
            raise ConfigError(f"cannot listen at {path}: {error.strerror}", "choose another with --socket") from error

    @classmethod
    def adopt(cls, loop: asyncio.AbstractEventLoop, fd: int, on_connect: Callable[[socket.socket], None]) -> Self:
        """Listen on a socket that the service manager opened; its file stays. ``ConfigError`` if it is none."""
        try:
            sock = socket.socket(fileno=fd)
        except OSError as error:
            raise ConfigError(f"descriptor {fd} is no socket: {error.strerror}") from error
        if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_SEQPACKET):
            sock.detach()
            raise ConfigError(f"descriptor {fd} is no Unix SEQPACKET socket", "use ListenSequentialPacket= in the unit")
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            sock.detach()
            raise ConfigError(f"descriptor {fd} is a socket that does not listen", "use Accept=no in the unit")
        return cls(loop, sock, on_connect)

    def close(self) -> None:
        """Stop listening, and remove the socket's file if ``bind`` made it and nobody replaced it. Twice is fine."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._sock.fileno())
        if self._pause is not None:
            self._pause.cancel()
        self._sock.close()
        if self._own_file is None:
            return
        try:
            found = self.path.lstat()
            if (found.st_dev, found.st_ino) == (self._own_file.st_dev, self._own_file.st_ino):
                self.path.unlink()
        except FileNotFoundError:
            return  # somebody cleaned up before us

    def _on_acceptable(self) -> None:
        for _ in range(limits.PACKETS_PER_WAKE):
            if self._closed:
                return
            try:
                sock, _ = self._sock.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                self._rest(error)
                return
            self._pause = None
            self._hand_over(sock)

    def _hand_over(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        try:
            self._on_connect(sock)
        except Exception as error:
            sock.close()
            self._loop.call_exception_handler({"message": "handling a connection failed", "exception": error})

    def _rest(self, error: OSError) -> None:
        """Overload is not a crash: who waits in the backlog is served when there are descriptors and memory again."""
        if self._pause is None:  # one line per shortage, not ten a second
            logger.warning("accepting connections failed: %s; trying again every %g s", error, limits.ACCEPT_PAUSE_S)
        self._loop.remove_reader(self._sock.fileno())
        self._pause = self._loop.call_later(
            limits.ACCEPT_PAUSE_S, self._loop.add_reader, self._sock.fileno(), self._on_acceptable
        )


def peer_credentials(sock: socket.socket) -> Credentials:
    """Who connected, at the moment it did, as the kernel says. ``pid`` is 0 for a peer outside our PID namespace."""
    pid, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    try:
        groups = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GETSOCKOPT_BYTES_MAX)
    except OSError as error:
        if error.errno != errno.ERANGE:
            raise
        groups = _getsockopt(sock.fileno(), _SO_PEERGROUPS, _GROUPS_MAX * _INT_BYTES)
    start_time = liveness.start_time(pid) if pid else liveness.UNKNOWN
    return Credentials(uid, gid, pid, frozenset(array.array("I", groups)), start_time)


def peer_pidfd(sock: socket.socket) -> int | None:
    """A descriptor for the very process that connected; None if the kernel (before 6.5) or our limits deny it."""
    try:
        pidfd = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:
        return None
    os.set_inheritable(pidfd, False)
    return pidfd


def _getsockopt(fd: int, option: int, size_bytes: int) -> bytes:
    """getsockopt() without CPython's limit on the answer."""
    buffer, size = ctypes.create_string_buffer(size_bytes), ctypes.c_uint32(size_bytes)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.getsockopt(fd, socket.SOL_SOCKET, option, buffer, ctypes.byref(size)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return buffer.raw[: size.value]


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens on; ``ConfigError`` if there is anything else."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigError(f"{path} exists and is no socket", "choose another with --socket, or remove it")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            logger.debug("probing %s: %s", path, error)
    raise ConfigError(f"something else listens at {path}", "choose another with --socket, or stop it")
