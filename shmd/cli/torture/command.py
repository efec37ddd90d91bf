"""``shmd torture``: publishers, subscribers and a daemon under load, killed and stopped at random, and the account.

    this process      draws from a seed what happens to whom · table or lines · closing account
      ├─ daemon       killed, stopped, restarted
      ├─ publishers   publish to a `wait` and a `discard-old` topic, and log every acknowledged record
      └─ subscribers  read both, and log every record they get

What happens is in ``chaos``, what must hold all the same in ``laws``. A run is cut into sessions, each with a seed and
an account of its own, so that a long run needs no more memory than a short one.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from shmd.cli.common import time as duration
from shmd.cli.status import EXIT_SIGNAL
from shmd.cli.torture.chaos import Chaos, Outcome
from shmd.cli.torture.keys import Keys
from shmd.cli.torture.view import showing
from shmd.errors import ShmdError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shmd.cli.torture.chaos import Mixture
    from shmd.cli.torture.view import Show

SESSION_ROUNDS: Final = 60
LOOK_S: Final = 0.05
"""Between looks at the keyboard."""
DURATION_DEFAULT_S: Final = 10.0
SEED_MAX: Final = 2**31


class TortureFailed(ShmdError):
    """Something did not survive."""

    code = "torture"


@click.command()
@click.option("--duration", "duration_s", type=duration, metavar="TIME", help="How long to go on. [default: 10s]")
@click.option("--rounds", type=click.IntRange(min=1), metavar="N", help="How many kills, stops and restarts, instead.")
@click.option(
    "--notifier", "notifiers", type=click.Choice(["eventfd", "fifo", "both"]), default="both", help="Of the topics."
)
@click.option(
    "--seed", type=click.IntRange(0, SEED_MAX), metavar="N", help="Draw the same again. [default: a random one]"
)
def torture(duration_s: float | None, rounds: int | None, notifiers: Mixture, seed: int | None) -> None:
    """Kill publishers, subscribers and a daemon at random, and account for every record.

    Needs nothing: starts a daemon of its own and cleans up. On a terminal, d p s a kill the daemon, a publisher, a
    subscriber, or all. The exit status says whether nothing was lost, torn or leaked.
    """
    first = secrets.randbelow(SEED_MAX) if seed is None else seed
    left = Left(rounds, None if rounds and duration_s is None else (duration_s or DURATION_DEFAULT_S))
    directory = Path(tempfile.mkdtemp(prefix="shmd-torture-"))
    total = Outcome(first)
    with _ended_by_signals():
        try:
            _run(total, directory, left, notifiers)
        except Exception:
            click.echo(f"seed {first}; what the processes said is in {directory}", err=True)
            raise
        except BaseException:
            shutil.rmtree(directory)
            raise
    click.echo(f"{total.published} records published, {total.received} received; longest pause {total.pause_s:.3f} s")
    click.echo(str(total))
    if total.ok:
        shutil.rmtree(directory)
        return
    for what in (*total.broken, *total.leaked):
        click.echo(what, err=True)
    raise TortureFailed(
        f"not everything survived; what the processes said is in {directory}",
        f"repeat it with: shmd torture --seed {first} --rounds {total.rounds} --notifier {notifiers}",
    )


class Left:
    """What is left to do: rounds, or seconds, whichever is first."""

    def __init__(self, rounds: int | None, seconds: float | None) -> None:
        self._rounds = rounds
        self._until = None if seconds is None else time.monotonic() + seconds
        self.interrupted = False

    @property
    def over(self) -> bool:
        late = self._until is not None and time.monotonic() >= self._until
        return self.interrupted or late or self._rounds == 0

    def take(self) -> None:
        if self._rounds is not None:
            self._rounds -= 1


def _run(total: Outcome, directory: Path, left: Left, notifiers: Mixture) -> None:
    """Session after session. Ctrl-C ends the last one early; the account is made all the same."""
    session = 0
    with Keys.of_terminal() as keys:
        while not left.over:
            place = directory / str(session)
            place.mkdir()
            with Chaos(place, total.seed + session, notifiers=notifiers) as chaos, showing(chaos, total) as show:
                with _ended_by_ctrl_c(left):
                    chaos.begin()
                    _session(chaos, keys, left, show)
                total.add(chaos.finish())
            if chaos.outcome.ok:
                shutil.rmtree(place)
            session += 1


def _session(chaos: Chaos, keys: Keys, left: Left, show: Show) -> None:
    for _ in range(SESSION_ROUNDS):
        if left.over:
            return
        until = time.monotonic() + chaos.gap_s()
        while (now := time.monotonic()) < until:
            chaos.wait(min(LOOK_S, until - now))
            for act in keys.pressed():
                show(chaos.act(act))
        show(chaos.step())
        left.take()


@contextlib.contextmanager
def _ended_by_ctrl_c(left: Left) -> Iterator[None]:
    """Between two acts, since one that is cut short cannot be accounted for. The second Ctrl-C ends it at once."""

    def end(_number: int, _frame: object) -> None:
        left.interrupted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise, so that nobody is left behind; ``SystemExit``, which no event loop swallows."""

    def end(number: int, _frame: object) -> None:
        raise SystemExit(EXIT_SIGNAL + number)

    before: dict[int, Callable[..., object] | int | None] = {}
    for ending in (signal.SIGTERM, signal.SIGHUP):
        before[ending] = signal.signal(ending, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
