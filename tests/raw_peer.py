"""A client of the control socket that says exactly what it is told to, also what no client should."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from shmd import protocol, transport

if TYPE_CHECKING:
    import socket
    from typing import Self

    from shmd.daemon import Daemon

Wanted = TypeVar("Wanted", bound=protocol.Outbound)


class HungUp(Exception):
    """The daemon closed the connection."""


class RawPeer:
    """One connection. Descriptors that come are counted in ``fds`` and closed by ``close``."""

    connection: transport.Connection
    sock: socket.socket

    def __init__(self) -> None:
        self.fds: list[int] = []
        self._inbox: asyncio.Queue[protocol.Outbound | None] = asyncio.Queue()
        self._ended = asyncio.Event()
        self._ids = 0
        self.welcome: protocol.Welcome | None = None

    @classmethod
    async def connect(
        cls,
        socket_path: str | os.PathLike[str],
        *,
        hello: bool = True,
        name: str = "raw",
        resume: RawPeer | None = None,
    ) -> Self:
        """``resume``: a peer whose connection is lost, and whose place this one asks for."""
        peer = cls()
        if resume is not None:
            peer._ids = resume._ids
        peer.sock = await transport.connect(Path(socket_path))
        loop = asyncio.get_running_loop()
        peer.connection = transport.Connection(loop, peer.sock, peer._packet_came, peer._end_came, fds_max=3)
        if hello:
            number = resume.number if resume is not None else 0
            said = protocol.Hello(id=peer.new_id(), major=1, minor=0, name=name, resume=number)
            peer.welcome = await peer.ask(protocol.Welcome, said)
        return peer

    @classmethod
    async def to(cls, daemon: Daemon, *, hello: bool = True, name: str = "raw", resume: RawPeer | None = None) -> Self:
        return await cls.connect(daemon.socket_path, hello=hello, name=name, resume=resume)

    @property
    def number(self) -> int:
        """The client that the daemon says this is."""
        assert self.welcome is not None
        return self.welcome.client

    def new_id(self) -> int:
        self._ids += 1
        return self._ids

    def send(self, message: protocol.Request | bytes) -> None:
        self.connection.send(message if isinstance(message, bytes) else protocol.encode(message))

    async def receive(self) -> protocol.Outbound:
        """The next message. ``HungUp`` if there is none to come."""
        message = await self._inbox.get()
        if message is None:
            self._inbox.put_nowait(None)
            raise HungUp
        return message

    async def ask(self, wanted: type[Wanted], message: protocol.Request) -> Wanted:
        """The answer to ``message``, of the type ``wanted``; what comes before it is dropped."""
        self.send(message)
        while True:
            reply = await self.receive()
            if getattr(reply, "id", None) == message.id:
                assert isinstance(reply, wanted), reply
                return reply

    async def hung_up(self) -> list[protocol.Outbound]:
        """Wait for the daemon to hang up. What it had said before."""
        heard = []
        while True:
            try:
                heard.append(await self.receive())
            except HungUp:
                return heard

    async def close(self, *, bye: bool = True) -> None:
        """Without ``bye``, as one whose connection is lost."""
        if bye and self.welcome is not None and not self.connection.closed:
            self.send(protocol.Bye(id=self.new_id()))
            await self._ended.wait()
        self.connection.close()
        await self._ended.wait()
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()

    def _packet_came(self, packet: bytes, fds: list[int]) -> None:
        self.fds += fds
        message = protocol.decode_reply(packet)
        assert len(fds) == getattr(message, "fds", 0)
        self._inbox.put_nowait(message)

    def _end_came(self, _reason: Exception | None) -> None:
        self._ended.set()
        self._inbox.put_nowait(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        await self.close()
