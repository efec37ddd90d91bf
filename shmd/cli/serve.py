"""``shmd serve``: the daemon in the foreground."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import sys
from pathlib import Path
from typing import Any

import click

from shmd.cli.common import run, size
from shmd.cli.status import Interrupted
from shmd.config import DaemonConfig
from shmd.daemon import Daemon
from shmd.places import DEFAULT_INSTANCE, SOCKET_NAME


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
    """Run the daemon until SIGTERM or Ctrl-C. Logs go to standard error."""
    settings = {name: value for name, value in settings.items() if value is not None}
    daemon_config = DaemonConfig.load(config, **settings) if config else DaemonConfig(**settings)
    if "instance" not in settings:
        daemon_config = _where_clients_look(daemon_config)
    logging.basicConfig(
        stream=sys.stderr, format="shmd: %(message)s", level=logging.DEBUG if verbose else logging.INFO, force=True
    )
    with contextlib.suppress(Interrupted):  # being told to end is how a daemon ends
        run(_serve(daemon_config))


def _where_clients_look(config: DaemonConfig) -> DaemonConfig:
    """Listening at $SHMD_SOCKET, where clients look unless they are told another socket or instance."""
    path = os.environ.get("SHMD_SOCKET")
    chosen = config.socket_path != config.instance_dir / SOCKET_NAME or config.instance != DEFAULT_INSTANCE
    return config if chosen or not path else dataclasses.replace(config, socket_path=Path(path))


async def _serve(config: DaemonConfig) -> None:
    async with Daemon(config) as daemon:
        await daemon.serve_forever()
