"""A client that knows of shmd only what docs/wire-protocol.md and docs/memory-layout.md say.

It imports nothing of shmd. Python has no atomics: aligned 64-bit stores through ctypes do not tear, but have no order.
That is enough for a test in which the two sides take turns, on an exclusive topic, which has no lock. A real client
needs C11's orders.
"""

from __future__ import annotations

import array
import ctypes
import os
import select
import socket
import struct
import time
from typing import Any

import msgpack

_libc = ctypes.CDLL(None, use_errno=True)
_libc.shmat.restype = ctypes.c_void_p
_libc.shmdt.argtypes = [ctypes.c_void_p]
_SHM_RDONLY = 0o10000

HEADER_BYTES = 4096
RECORD = struct.Struct("<IIQQII")
"""length, kind, seq, time_ns, publisher, checksum"""
DATA, PADDING = 1, 2
LIVE = 1 << 32


class Refused(Exception):
    """The daemon said no. The arguments are its code and its message."""


class Connection:
    """The control socket."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.connect(path)
        self.events: list[dict[str, Any]] = []
        self._last_id = 0
        self.welcome, _ = self.ask("hello", major=1, minor=0, name="foreign")
        assert self.welcome["type"] == "welcome"
        assert self.welcome["major"] == 1
        self._roster = Memory(self.welcome["roster_id"], readonly=True)
        assert (self._roster.copy(0, 8), self._roster.copy(16, 16)) == (b"SHMDROS1", self.welcome["instance_id"])

    def ask(self, kind: str, **fields: Any) -> tuple[dict[str, Any], list[int]]:
        """The reply to a request, and the descriptors beside it."""
        self._last_id += 1
        self.socket.send(msgpack.packb({"type": kind, "id": self._last_id, **fields}))
        while True:
            reply, fds = self._receive()
            if reply.get("id") == self._last_id:
                break
            self.events.append(reply)
        if reply["type"] == "refused":
            raise Refused(reply["code"], reply["message"])
        return reply, fds

    def close(self) -> None:
        self.ask("bye")
        assert self.socket.recv(1) == b"", "the daemon hangs up"
        self.socket.close()
        self._roster.detach()

    def _receive(self) -> tuple[dict[str, Any], list[int]]:
        packet, ancillary, flags, _ = self.socket.recvmsg(65536, socket.CMSG_LEN(2 * 4), socket.MSG_CMSG_CLOEXEC)
        fds = array.array("i")
        for level, kind, data in ancillary:
            assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
            fds.frombytes(data)
        reply = msgpack.unpackb(packet)
        granted = reply["type"] in ("publisher", "subscriber", "resumed")
        assert not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
        assert len(fds) == (reply.get("fds", 2) if granted else 0)
        return reply, fds.tolist()


class Memory:
    """An attached segment, in words."""

    def __init__(self, shmid: int, *, readonly: bool) -> None:
        self._address = _libc.shmat(shmid, None, _SHM_RDONLY if readonly else 0)
        assert self._address not in (None, ctypes.c_void_p(-1).value), os.strerror(ctypes.get_errno())

    def copy(self, offset: int, size: int) -> bytes:
        return ctypes.string_at(self._address + offset, size)

    def put(self, offset: int, data: bytes) -> None:
        for at in range(0, len(data), 8):
            self.store(offset + at, int.from_bytes(data[at : at + 8], "little"))

    def load(self, offset: int) -> int:
        return ctypes.c_uint64.from_address(self._address + offset).value

    def store(self, offset: int, value: int) -> None:
        ctypes.c_uint64.from_address(self._address + offset).value = value

    def detach(self) -> None:
        _libc.shmdt(self._address)


class Topic:
    """What publisher and subscriber have in common: both segments, attached and checked."""

    TAIL, HEAD, RUNG = 0x200, 0x240, 0x2C0
    ARMED, SLOTS = 0x40, 0x1000

    def __init__(self, connection: Connection, grant: dict[str, Any], fds: list[int], *, publishes: bool) -> None:
        self.connection, self.handle, self.grant = connection, grant["id"], grant
        self.record_bell, self.space_bell = fds
        info = grant["topic"]
        self.capacity: int = info["size_bytes"]
        self.log = Memory(info["log_id"], readonly=not publishes)
        self.ctl = Memory(info["ctl_id"], readonly=False)
        flags = (info["when_full"] == "wait") | info["exclusive"] << 1
        version = struct.unpack_from("<H", self.log.copy(0x00A, 2))[0]
        assert (self.log.copy(0, 8), version) == (b"SHMDLOG1", 1)
        assert struct.unpack("<IQI", self.log.copy(0x00C, 16)) == (HEADER_BYTES, self.capacity, flags)
        assert self.log.copy(0x030, 16) == info["topic_id"]
        assert (self.ctl.copy(0, 8), self.ctl.copy(0x020, 16)) == (b"SHMDCTL1", info["topic_id"])

    def at(self, position: int) -> int:
        return HEADER_BYTES + (position & (self.capacity - 1))

    def close(self) -> None:
        self.log.detach()
        self.ctl.detach()
        os.close(self.record_bell)
        os.close(self.space_bell)
        self.connection.ask("close", handle=self.handle)


class Publisher(Topic):
    """The only one of an exclusive, `discard-old` topic."""

    def __init__(self, connection: Connection, topic: str) -> None:
        grant, fds = connection.ask("publish", topic=topic, options={"exclusive": True, "size_bytes": 4096})
        super().__init__(connection, grant, fds, publishes=True)

    def publish(self, payload: bytes) -> int:
        tail, head = self.log.load(self.TAIL), self.log.load(self.HEAD)
        seq = self._last_seq(tail) + 1
        size = (RECORD.size + len(payload) + 4 + 7) & ~7
        left = self.capacity - (tail & (self.capacity - 1))
        start = tail if size <= left else tail + left
        while start + size - head > self.capacity:  # give up the oldest records
            head += self._size_at(head)
        self.log.store(self.HEAD, head)
        if start > tail:
            self.log.store(self.at(tail), PADDING << 32 | left)
        record = RECORD.pack(len(payload), DATA, seq, time.time_ns(), self.grant["publisher"], 0) + payload
        trailer = len(payload).to_bytes(4, "little")
        self.log.put(self.at(start), record.ljust(size - 4, b"\0") + trailer)
        self.log.store(self.TAIL, start + size)  # the commit
        armed = self.ctl.load(self.ARMED)
        if armed != self.log.load(self.RUNG):
            os.write(self.record_bell, bytes(8))
            self.log.store(self.RUNG, armed)
        return seq

    def _last_seq(self, tail: int) -> int:
        if tail == 0:
            return 0
        length = int.from_bytes(self.log.copy(self.at(tail - 8), 8)[4:], "little")
        start = tail - ((RECORD.size + length + 4 + 7) & ~7)
        return int(RECORD.unpack(self.log.copy(self.at(start), RECORD.size))[2])

    def _size_at(self, position: int) -> int:
        length, kind = struct.unpack("<II", self.log.copy(self.at(position), 8))
        return int(length) if kind == PADDING else (RECORD.size + length + 4 + 7) & ~7


class Subscriber(Topic):
    """Begins behind the newest record."""

    def __init__(self, connection: Connection, topic: str) -> None:
        grant, fds = connection.ask("subscribe", topic=topic, tethered=False)
        super().__init__(connection, grant, fds, publishes=False)
        self._slot = self.SLOTS + 64 * grant["slot"]
        assert self.ctl.load(self._slot) >> 34 == grant["incarnation"]
        self._epoll = select.epoll()
        self._epoll.register(self.record_bell, select.EPOLLIN | select.EPOLLET)
        self._position = self.log.load(self.TAIL)
        self._store_cursor()
        connection.ask("joined", handle=self.handle)

    def read(self) -> tuple[int, bytes]:
        """The next record's sequence number and payload; waits for one."""
        while self.log.load(self.TAIL) == self._position:
            self.ctl.store(self.ARMED, self.ctl.load(self.ARMED) + 1)
            if self.log.load(self.TAIL) == self._position:
                self._epoll.poll()
        while True:
            tail = self.log.load(self.TAIL)
            assert tail - self._position <= self.capacity, "lapped"
            length, kind = struct.unpack("<II", self.log.copy(self.at(self._position), 8))
            if kind == DATA:
                break
            assert kind == PADDING
            self._position += length
        size = (RECORD.size + length + 4 + 7) & ~7
        copy = self.log.copy(self.at(self._position), size)
        assert self.log.load(self.HEAD) <= self._position, "lapped"
        assert copy[-4:] == copy[:4], "the length again"
        self._position += size
        self._store_cursor()
        return RECORD.unpack_from(copy)[2], copy[RECORD.size : RECORD.size + length]

    def close(self) -> None:
        self._epoll.close()
        super().close()

    def _store_cursor(self) -> None:
        word = self.grant["incarnation"] << 34 | LIVE | (self._position >> 3 & 0xFFFFFFFF)
        self.ctl.store(self._slot, word)  # a compare-and-swap, where there is one
