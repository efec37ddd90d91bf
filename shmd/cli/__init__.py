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

from shmd.cli.group import Commands
from shmd.cli.output import complain
from shmd.cli.status import EXIT_FAILED, EXIT_SIGNAL, EXIT_UNAVAILABLE, Interrupted
from shmd.errors import DaemonUnavailable, NoSubscribers, ShmdError

if TYPE_CHECKING:
    from collections.abc import Sequence

_COMMANDS: Final = {
    "serve": ("shmd.cli.serve:serve", "Run the daemon until SIGTERM or Ctrl-C."),
    "pub": ("shmd.cli.pub:pub", "Publish each line of JSON on standard input."),
    "sub": ("shmd.cli.sub:sub", "Write each record of a topic as a line of JSON."),
    "ls": ("shmd.cli.topics:ls", "List topics and raw segments."),
    "stat": ("shmd.cli.topics:stat", "Show a topic, its publishers, and how far behind its subscribers are."),
    "rm": ("shmd.cli.topics:rm", "Remove topics and all their records."),
    "segment": ("shmd.cli.segment:segment", "Raw System V segments, by name."),
    "stop": ("shmd.cli.upkeep:stop", "Stop the daemon; its topics stay for the next one."),
    "purge": ("shmd.cli.upkeep:purge", "Remove every topic of the instance."),
    "fsck": ("shmd.cli.upkeep:fsck", "List every segment that shmd made on this host, and who still needs it."),
    "demo": ("shmd.cli.demo:demo", "Publish this host's /proc to three subscribers, one of them slow."),
    "torture": ("shmd.cli.torture.command:torture", "Kill processes at random, and account for every record."),
}


class _Shmd(Commands):
    """Ends every failure of a command in one line."""

    def invoke(self, ctx: click.Context) -> Any:
        from shmd.cli import logs  # not for --help

        logs.to_stderr()
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
        complain(message)
    ctx.exit(status)


def _discard_output() -> None:
    """What Python still holds for standard output goes nowhere, instead of failing once more at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(null, stream.fileno())
    os.close(null)


def _print_version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        import shmd

        click.echo(f"shmd, version {shmd.__version__}")
        ctx.exit()


@click.group(
    cls=_Shmd,
    table=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
def cli() -> None:
    """Topics in System V shared memory: records go from process to process, the daemon only introduces them."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The console script: runs the command line and exits."""
    cli.main(args=arguments, prog_name="shmd")
    raise AssertionError("click exits by itself")
