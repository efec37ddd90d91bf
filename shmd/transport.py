"""Packets and descriptors over ``SOCK_SEQPACKET`` Unix sockets, for the daemon and for clients.

asyncio's transports know neither SEQPACKET nor descriptors, so this sits directly on ``add_reader`` and ``add_writer``,
which asyncio and uvloop both have. All is callbacks that never block; coroutines are made of them elsewhere. Listening
and accepting are in ``listener``.

What a peer can do to us is bounded: a packet, the packets handled per turn of the loop, the packets that wait for a
peer that does not read, the descriptors it leaves unread (they count against this process's user until they are
received), and the descriptors it may send us: ``fds_max``, 0 in the daemon, where the kernel drops them by itself.
A daemon moreover takes no further packet from a peer while one for it waits (``backpressure``), so that asking without
reading the answers costs it nothing.

Ownership of descriptors: ``send`` borrows them (a packet that must wait keeps duplicates of its own); received ones
belong to ``on_packet``, which closes them.

Quirks of the kernel that this knows:

- A packet of no bytes looks like the end of the connection; so none is ever sent.
- A peer that closes with packets from us unread makes our next receive fail with ECONNRESET, once; what it had sent
  before can still be read after that.
- A send to a peer that has gone fails with EPIPE, but its last words may still be there: the end is where reading ends.
- ``connect`` to a full backlog fails with EAGAIN, and nothing ever tells when to try again.
"""

from __future__ import annotations

import array
import asyncio
import errno
import fcntl
import os
import socket
import termios
from collections import deque
from typing import TYPE_CHECKING, Final

from shmd import limits, places
from shmd.errors import DaemonUnavailable, LimitExceeded, ProtocolError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path


_INT_BYTES: Final = array.array("i").itemsize
_CONNECT_RETRY_S: Final = 0.01
_PEER_GONE: Final = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN})
_SHORTAGE: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ETOOMANYREFS})


class Connection:
    """One peer. Reads at once; belongs to the loop's thread."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        on_packet: Callable[[bytes, list[int]], None],
        on_closed: Callable[[Exception | None], None],
        *,
        fds_max: int = 0,
        backpressure: bool = False,
    ) -> None:
        """Take ``sock`` over and call ``on_packet(packet, fds)`` for each packet, with at most ``fds_max`` descriptors.

        ``on_closed`` is called exactly once, from the loop, never from within a method of this object: with None when
        the peer hung up or ``close`` was called, else with why (``ProtocolError``, ``LimitExceeded``, ``OSError``). An
        exception out of ``on_packet`` goes to the loop's exception handler and ends this connection, no other.
        ``backpressure``: do not read while packets for the peer wait. For one end only: two could wait for each other.
        """
        sock.setblocking(False)
        self._loop = loop
        self._sock = sock
        self._on_packet = on_packet
        self._on_closed = on_closed
        self._ancillary_bytes = socket.CMSG_LEN(fds_max * _INT_BYTES) if fds_max else 0
        self._backpressure = backpressure
        self._queue: deque[tuple[bytes, list[int]]] = deque()
        self._fds_unread = 0
        self._retry: asyncio.TimerHandle | None = None
        self._deaf = False
        self._closed = False
        loop.add_reader(sock.fileno(), self._on_readable)

    @property
    def closed(self) -> bool:
        return self._closed

    def send(self, packet: bytes, fds: Sequence[int] = ()) -> None:
        """Send now or, if the peer is slow, later, in order. Never waits; ``fds`` may be closed as soon as it returns.

        Nothing happens if the peer has gone. A peer for which ``SEND_QUEUE_MESSAGES_MAX`` packets wait is hung up on.
        ``UsageError`` for a packet of no bytes or over ``MESSAGE_BYTES_MAX``.
        """
        if not 0 < len(packet) <= limits.MESSAGE_BYTES_MAX:
            raise UsageError(f"a packet cannot have {len(packet)} bytes", f"1 to {limits.MESSAGE_BYTES_MAX}")
        if self._closed or self._deaf or (not self._queue and self._try_send(packet, fds)):
            return
        if len(self._queue) >= limits.SEND_QUEUE_MESSAGES_MAX:
            self._end(LimitExceeded(f"the peer left {limits.SEND_QUEUE_MESSAGES_MAX} messages unread"))
            return
        own: list[int] = []
        try:
            own.extend(map(os.dup, fds))
        except OSError as error:
            _close_all(own)
            self._end(error)
            return
        self._queue.append((packet, own))

    def close(self) -> None:
        """Hang up; what still waits to be sent is dropped. Twice is fine."""
        self._end(None)

    def _on_readable(self) -> None:
        for _ in range(limits.PACKETS_PER_WAKE):
            if self._closed:
                return
            if self._queue and self._backpressure:
                self._loop.remove_reader(self._sock.fileno())
                return
            try:
                packet, fds, flags = self._receive()
            except BlockingIOError:
                return
            except ConnectionResetError:
                continue
            except OSError as error:
                self._end(error)
                return
            if not packet or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                _close_all(fds)
                self._end(_truncation(flags))
                return
            self._deliver(packet, fds)

    def _receive(self) -> tuple[bytes, list[int], int]:
        packet, ancillary, flags, _ = self._sock.recvmsg(
            limits.MESSAGE_BYTES_MAX, self._ancillary_bytes, socket.MSG_CMSG_CLOEXEC
        )
        fds = array.array("i")
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        return packet, fds.tolist(), flags

    def _deliver(self, packet: bytes, fds: list[int]) -> None:
        try:
            self._on_packet(packet, fds)
        except Exception as error:
            self._loop.call_exception_handler({"message": "handling a packet failed", "exception": error})
            self._end(error)

    def _try_send(self, packet: bytes, fds: Sequence[int]) -> bool:
        """Whether the packet is done with; if not, ``_flush`` is going to be called."""
        if fds and self._fds_unread >= limits.DESCRIPTOR_PACKETS_UNREAD_MAX:
            if _bytes_unread(self._sock):
                self._flush_later()
                return False
            self._fds_unread = 0
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._sock.sendmsg([packet], rights, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            self._loop.add_writer(self._sock.fileno(), self._flush)
            return False
        except OSError as error:
            return self._send_failed(error)
        self._fds_unread += bool(fds)
        return True

    def _send_failed(self, error: OSError) -> bool:
        if error.errno in _SHORTAGE:
            self._flush_later()
            return False
        if error.errno in _PEER_GONE:
            self._deaf = True
        else:
            self._end(error)
        return True

    def _flush_later(self) -> None:
        if self._retry is None:
            self._retry = self._loop.call_later(limits.DESCRIPTOR_RETRY_S, self._flush)

    def _flush(self) -> None:
        self._stop_flushing()
        while self._queue and not self._closed:
            if not self._deaf and not self._try_send(*self._queue[0]):
                return
            if self._queue:
                _close_all(self._queue.popleft()[1])
        if self._backpressure and not self._closed:
            self._loop.add_reader(self._sock.fileno(), self._on_readable)

    def _stop_flushing(self) -> None:
        self._loop.remove_writer(self._sock.fileno())
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def _end(self, reason: Exception | None) -> None:
        if self._closed:
            return
        self._closed = True
        self._stop_flushing()
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()
        while self._queue:
            _close_all(self._queue.popleft()[1])
        self._loop.call_soon(self._on_closed, reason)


async def connect(path: Path, timeout_s: float = limits.CONNECT_TIMEOUT_S) -> socket.socket:
    """A connected, non-blocking socket to the daemon at ``path``.

    ``DaemonUnavailable`` if there is none, or it does not accept within ``timeout_s``. Cancelling leaves nothing open.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.setblocking(False)
            sock.connect(os.fspath(path))
            return sock
        except BlockingIOError:
            sock.close()
            if loop.time() >= deadline:
                raise _unavailable(path, "it does not accept connections", "it is overloaded or stopped") from None
        except OSError as error:
            sock.close()
            absent = isinstance(error, FileNotFoundError | ConnectionRefusedError)
            raise _unavailable(path, _reason(error), places.how_to_start(path) if absent else None) from error
        await asyncio.sleep(_CONNECT_RETRY_S)


def _truncation(flags: int) -> ProtocolError | None:
    if flags & socket.MSG_TRUNC:
        return ProtocolError(f"the peer sent a packet of more than {limits.MESSAGE_BYTES_MAX} bytes")
    if flags & socket.MSG_CTRUNC:
        return ProtocolError(
            "descriptors from the peer were lost",
            "more than this side takes, or more than this process may open: ulimit -n",
        )
    return None


def _bytes_unread(sock: socket.socket) -> int:
    """What the peer has not received yet."""
    answer = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(_INT_BYTES))
    return int.from_bytes(answer, "little")


def _close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def _unavailable(path: Path, reason: str, hint: str | None) -> DaemonUnavailable:
    return DaemonUnavailable(f"no shmd at {path}: {reason}", hint)


def _reason(error: OSError) -> str:
    return {
        errno.ENOENT: "there is no such socket",
        errno.ECONNREFUSED: "nobody listens on it",
        errno.EACCES: "its permissions, or its directory's, keep this user out",
        errno.EPROTOTYPE: "it is a socket of another kind",
    }.get(error.errno or 0, error.strerror or str(error))
