"""A daemon in a process of its own, which kills itself when it passes the failpoint it is given for the n-th time.

    python -m tests.failing_daemon RUNTIME_DIR [FAILPOINT SKIP]

It prints a line when it listens. Without a failpoint it is ephemeral, and ends with SIGTERM.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

from shmd import failpoint
from shmd.config import DaemonConfig
from shmd.daemon import Daemon


def die_at(name: str, skip: int) -> None:
    left = skip

    def reached(passed: str) -> None:
        nonlocal left
        if passed == name:
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    failpoint.hook = reached


async def serve(runtime_dir: Path, *, ephemeral: bool) -> None:
    async with Daemon(DaemonConfig(runtime_dir=runtime_dir, ephemeral=ephemeral, total_bytes=64 << 20)) as daemon:
        serving = asyncio.create_task(daemon.serve_forever())
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, serving.cancel)
        sys.stdout.write("listening\n")
        sys.stdout.flush()
        with contextlib.suppress(asyncio.CancelledError):
            await serving


if __name__ == "__main__":
    if sys.argv[2:]:
        die_at(sys.argv[2], int(sys.argv[3]))
    asyncio.run(serve(Path(sys.argv[1]), ephemeral=not sys.argv[2:]))
