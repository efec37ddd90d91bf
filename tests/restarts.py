"""A daemon that a test kills and starts again, and what the clients are then to find."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

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
