"""The command ``shmd``: daemon, pipelines and inspection from a shell.

Exit statuses, the same for every command:

| status | meaning                                                                                   |
|--------|-------------------------------------------------------------------------------------------|
| 0      | done                                                                                      |
| 1      | it failed: one line on standard error says what and what to do                            |
| 2      | the command line cannot be: usage on standard error                                       |
| 69     | no daemon there (EX_UNAVAILABLE)                                                          |
| 128+n  | ended by signal n: 130 by Ctrl-C, 143 by SIGTERM, 141 where the reader of the output left |
|        | (for ``pub --require-subscribers``, the topic's last subscriber)                          |

Only a defect of shmd itself shows a traceback.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

import shmd
from shmd.cli.common import EXIT_SIGNAL, Interrupted
from shmd.errors import DaemonUnavailable, NoSubscribers, ShmdError

if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_FAILED: Final = 1
EXIT_UNAVAILABLE: Final = os.EX_UNAVAILABLE

_COMMANDS: Final = {
    "serve": "shmd.cli.serve:serve",
    "pub": "shmd.cli.pub:pub",
    "sub": "shmd.cli.sub:sub",
    "ls": "shmd.cli.topics:ls",
    "stat": "shmd.cli.topics:stat",
    "rm": "shmd.cli.topics:rm",
    "segment": "shmd.cli.segment:segment",
    "stop": "shmd.cli.upkeep:stop",
    "purge": "shmd.cli.upkeep:purge",
    "fsck": "shmd.cli.upkeep:fsck",
    "demo": "shmd.cli.demo:demo",
    "torture": "shmd.cli.torture.command:torture",
}


class _Commands(click.Group):
    """Loads a command when it is asked for (a pipeline starts in half the time), and ends every failure in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        import importlib

        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            if sys.stdout is not None:
                sys.stdout.flush()
        except Interrupted as interrupted:
            ctx.exit(EXIT_SIGNAL + interrupted.signal)
        except KeyboardInterrupt:
            ctx.exit(EXIT_SIGNAL + signal.SIGINT)
        except BrokenPipeError:
            _discard_output()
            ctx.exit(EXIT_SIGNAL + signal.SIGPIPE)
        except NoSubscribers as error:
            _fail(ctx, str(error), EXIT_SIGNAL + signal.SIGPIPE)
        except DaemonUnavailable as error:
            _fail(ctx, str(error), EXIT_UNAVAILABLE)
        except ShmdError as error:
            _fail(ctx, str(error), EXIT_FAILED)
        except OSError as error:
            _fail(ctx, f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror), EXIT_FAILED)
        return result


def _fail(ctx: click.Context, message: str, status: int) -> NoReturn:
    with contextlib.suppress(OSError):  # nobody may be listening on standard error either
        click.echo(f"shmd: {message}", err=True)
    ctx.exit(status)


def _discard_output() -> None:
    """What Python still holds for standard output goes nowhere, instead of failing once more at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(null, stream.fileno())
    os.close(null)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version=shmd.__version__, prog_name="shmd")
def cli() -> None:
    """Topics in System V shared memory: records go from process to process, the daemon only introduces them."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The console script: runs the command line and exits."""
    cli.main(args=arguments, prog_name="shmd")
    raise AssertionError("click exits by itself")
