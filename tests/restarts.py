"""A daemon that a test kills and starts again, and what the clients are then to find."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from shmd import _core, limits, segment
from shmd import roster_layout as layout
from shmd.testing import DaemonProcess
from tests.loop_turns import until

if TYPE_CHECKING:
    import shmd


class Restarts:
    """One daemon after the other, of one instance. ``daemon`` is the last."""

    def __init__(self) -> None:
        self.daemon = DaemonProcess.start()
        self.count = 0

    @property
    def socket_path(self) -> str:
        return self.daemon.socket_path

    async def kill(self, *clients: shmd.Client) -> None:
        """SIGKILL, and wait until the clients know."""
        self.daemon.kill()
        for client in clients:
            await until(lambda client=client: client.state == "disconnected")  # type: ignore[misc]

    async def forget_everybody(self) -> None:
        """Between ``kill`` and ``start``: the roster says of nobody any more that he takes part."""
        await asyncio.to_thread(self._forget_everybody)

    async def start(self, *clients: shmd.Client) -> None:
        """Start the successor, and wait until the clients are connected to it."""
        self.daemon = await asyncio.to_thread(self._successor)
        for client in clients:
            await until(lambda client=client: client.state == "connected")  # type: ignore[misc]
        self.count += 1

    async def restart(self, *clients: shmd.Client) -> None:
        await self.kill(*clients)
        await self.start(*clients)

    def close(self) -> None:
        """End the last one. What earlier ones left goes with it."""
        if self.daemon.process.poll() is not None:
            self.daemon = self._successor()
        self.daemon.close()

    def _successor(self) -> DaemonProcess:
        return DaemonProcess.start(instance=self.daemon.instance, runtime_dir=self.daemon.runtime_dir)

    def _forget_everybody(self) -> None:
        parts = [
            found.id
            for found in segment.list_segments()
            if found.size_bytes == layout.ROSTER_BYTES and found.creator_pid == self.daemon.pid
        ]
        assert parts, "there is no roster"
        for part in parts:
            with segment.attach(part, readonly=False) as held:
                for index in range(limits.PARTICIPANTS_MAX):
                    offset = layout.PARTICIPANTS_AT + index * layout.PARTICIPANT.size_bytes
                    _core.store_word(held.mapping, offset, 0)
