"""``shmd serve``: the daemon in the foreground."""

from __future__ import annotations

import contextlib
import logging
import sys
from pathlib import Path
from typing import Any

import click

from shmd.cli.common import Interrupted, run, size
from shmd.config import DaemonConfig
from shmd.daemon import Daemon


@click.command()
@click.option("--config", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="TOML file of settings.")
@click.option("--instance", metavar="NAME", help="Name of this daemon, if there are several. [default: default]")
@click.option(
    "--runtime-dir",
    type=click.Path(path_type=Path),
    help="Holds socket and lock. [default: $XDG_RUNTIME_DIR/shmd or /run/shmd]",
)
@click.option(
    "--socket", "socket_path", type=click.Path(path_type=Path), help="Control socket. [default: control.sock there]"
)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    help="Holds segments that are files. [default: $XDG_STATE_HOME/shmd or /var/lib/shmd]",
)
@click.option("--max-bytes", "total_bytes", type=size, help="All topics together, like 16GiB. [default: 4GiB]")
@click.option("--ephemeral", is_flag=True, default=None, help="Remove all topics when the daemon is stopped.")
@click.option("--verbose", is_flag=True, help="Log what clients ask for, too.")
def serve(config: Path | None, verbose: bool, **settings: Any) -> None:
    """Run the daemon until SIGTERM or Ctrl-C. Logs go to standard error."""
    settings = {name: value for name, value in settings.items() if value is not None}
    daemon_config = DaemonConfig.load(config, **settings) if config else DaemonConfig(**settings)
    logging.basicConfig(
        stream=sys.stderr, format="shmd: %(message)s", level=logging.DEBUG if verbose else logging.INFO, force=True
    )
    with contextlib.suppress(Interrupted):  # being told to end is how a daemon ends
        run(_serve(daemon_config))


async def _serve(config: DaemonConfig) -> None:
    async with Daemon(config) as daemon:
        await daemon.serve_forever()
