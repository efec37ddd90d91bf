"""``shmd serve``: the daemon in the foreground."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shmd.cli.common import run, size
from shmd.cli.logs import to_stderr
from shmd.cli.status import Interrupted
from shmd.config import DaemonConfig
from shmd.daemon import Daemon
from shmd.places import DEFAULT_INSTANCE, SOCKET_NAME

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("shmd.daemon")


@click.command()
@click.option("--config", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="TOML file of settings.")
@click.option("--instance", metavar="NAME", help="Name of this daemon, if there are several. [default: default]")
@click.option(
    "--runtime-dir",
    type=click.Path(path_type=Path),
    help="Holds socket and lock. [default: the first of $XDG_RUNTIME_DIR/shmd, /run/user/UID/shmd and /tmp/shmd-UID "
    "that is this user's; for root /run/shmd]",
)
@click.option(
    "--socket",
    "socket_path",
    type=click.Path(path_type=Path),
    help="Control socket. [default: $SHMD_SOCKET, or control.sock there]",
)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    help="Holds segments that are files. [default: $XDG_STATE_HOME/shmd or /var/lib/shmd]",
)
@click.option(
    "--max-bytes", "total_bytes", type=size, metavar="SIZE", help="All topics together, like 16GiB. [default: 4GiB]"
)
@click.option("--ephemeral", is_flag=True, default=None, help="Remove all topics when the daemon is stopped.")
@click.option("--verbose", is_flag=True, help="Log what clients ask for, too.")
def serve(config: Path | None, verbose: bool, **settings: Any) -> None:
    """Run the daemon until SIGTERM or Ctrl-C. Logs go to standard error.

    SIGHUP is logged and changes nothing: the configuration is read at the start.
    """
    settings = {name: value for name, value in settings.items() if value is not None}
    daemon_config = DaemonConfig.load(config, **settings) if config else DaemonConfig(**settings)
    if "instance" not in settings:
        daemon_config = _where_clients_look(daemon_config)
    to_stderr(logging.DEBUG if verbose else logging.INFO)
    with contextlib.suppress(Interrupted):  # being told to end is how a daemon ends
        run(_serve(daemon_config))


def _where_clients_look(config: DaemonConfig) -> DaemonConfig:
    """Listening at $SHMD_SOCKET, where clients look unless they are told another socket or instance."""
    path = os.environ.get("SHMD_SOCKET")
    chosen = config.socket_path != config.instance_dir / SOCKET_NAME or config.instance != DEFAULT_INSTANCE
    return config if chosen or not path else dataclasses.replace(config, socket_path=Path(path))


async def _serve(config: DaemonConfig) -> None:
    _on_signal(signal.SIGHUP, logger.info, "SIGHUP ignored: restart to read the configuration")
    async with Daemon(config) as daemon:
        for number in (signal.SIGINT, signal.SIGTERM):
            _on_signal(number, daemon.stop, f"it got {number.name}")
        await daemon.serve_forever()


def _on_signal(number: signal.Signals, callback: Callable[[str], object], text: str) -> None:
    """Unless whoever started us had it ignored, as nohup does."""
    if signal.getsignal(number) is not signal.SIG_IGN:
        asyncio.get_running_loop().add_signal_handler(number, callback, text)
