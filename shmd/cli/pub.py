"""``shmd pub``: standard input to a topic.

What one read of standard input completes is published at once, in batches: a lone line never waits for company, and a
file goes some hundred records to a commit. Everything before a bad line is published, nothing after it. JSON that
msgpack has no word for, integers beyond 64 bits, is an error; NaN and Infinity are no JSON.

``--require-subscribers`` behaves like a redirection to a FIFO: opening waits for a reader, and a write that finds none
ends the command with the status of SIGPIPE, though with a word of why. Like there, it is the next write that finds out.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Protocol

import click
import msgpack
import msgspec

from shmd import limits
from shmd.cli.common import connect, daemon_options, mode, run, size, wait_option
from shmd.cli.streams import Frames, InputError, InputReader, Lines
from shmd.errors import NoSubscribers, RecordTooLarge

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

STDIN: Final = 0
BATCH_BYTES_MAX: Final = limits.READ_BATCH_BYTES
"""Of one commit: what a subscriber copies at a time, so that both sides work at once."""
RECORD_COST_BYTES: Final = 64
"""What a record takes in a log beyond its payload, rounded up: header, trailer, padding."""


class Source(Protocol):
    """Cuts standard input into payloads. ``InputError`` where it is none, after what came before."""

    def feed(self, data: bytes) -> Iterable[bytes]: ...
    def finish(self) -> Iterable[bytes]: ...


class JsonLines:
    """Payloads from JSON, one value to a line; empty lines are none."""

    def __init__(self) -> None:
        self._lines = Lines()
        self._number = 0
        self._parse = msgspec.json.Decoder().decode
        self._pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack

    def feed(self, data: bytes) -> Iterator[bytes]:
        return self._payloads(self._lines.feed(data))

    def finish(self) -> Iterator[bytes]:
        return self._payloads(self._lines.finish())

    def _payloads(self, lines: list[bytes]) -> Iterator[bytes]:
        for line in lines:
            self._number += 1
            try:
                payload = self._pack(self._parse(line))
            except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
                if not line.strip():
                    continue
                raise self._refusal(error) from None
            yield payload

    def _refusal(self, error: Exception) -> InputError:
        if isinstance(error, OverflowError):
            return InputError(f"line {self._number}: an integer of more than 64 bits", "write it as a string")
        if isinstance(error, RecursionError) or not isinstance(error, (msgspec.MsgspecError, UnicodeError)):
            return InputError(f"line {self._number}: nested too deeply", "some hundred levels are the limit")
        return InputError(f"line {self._number}: {error}", "each line is one JSON value; --raw takes bytes")


def batches(payloads: Iterable[bytes], bytes_max: int) -> Iterator[list[bytes]]:
    """All payloads in order, as many together as fit ``bytes_max`` in a log; a larger one stands alone."""
    batch: list[bytes] = []
    room = bytes_max
    try:
        for payload in payloads:
            cost = len(payload) + RECORD_COST_BYTES
            if cost > room and batch:
                yield batch
                batch, room = [], bytes_max
            batch.append(payload)
            room -= cost
    except InputError:
        if batch:
            yield batch
        raise
    if batch:
        yield batch


@click.command()
@click.argument("topic")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after this many records.")
@click.option("--raw", is_flag=True, help="Records are bytes, each after its length as 4 bytes, little-endian.")
@click.option("--wait-subscribers", type=click.IntRange(min=1), metavar="N", help="Begin once N subscribers are there.")
@click.option(
    "--require-subscribers",
    is_flag=True,
    help="Begin once a subscriber is there, and end, as by SIGPIPE, at the first record that finds none.",
)
@click.option("--size", type=size, metavar="SIZE", help="Of a new topic, like 16MiB.")
@click.option("--when-full", type=click.Choice(["discard-old", "wait"]), help="What publishing to a full topic does.")
@click.option("--exclusive", is_flag=True, default=None, help="Be the topic's only publisher.")
@click.option("--mode", type=mode, metavar="MODE", help="Permissions of a new topic, like 640.")
@click.option("--notifier", type=click.Choice(["eventfd", "fifo"]), help="How those who wait are woken.")
@wait_option
@daemon_options
def pub(topic: str, socket_path: str | None, instance: str | None, **options: Any) -> None:
    """Publish each line of JSON on standard input to TOPIC.

    The topic is made if there is none; asking for options that an existing one does not have is an error.
    """
    source = Frames() if options.pop("raw") else JsonLines()
    run(_publish_input(topic, socket_path, instance, source, **options))


async def _publish_input(
    topic: str,
    socket_path: str | None,
    instance: str | None,
    source: Source,
    *,
    wait: bool,
    count: int | None,
    wait_subscribers: int | None,
    require_subscribers: bool,
    **options: Any,
) -> None:
    async with (
        connect(socket_path, instance, "shmd pub", wait=wait) as client,
        client.publisher(topic, codec="raw", require_subscribers=require_subscribers, **options) as publisher,
    ):
        if wait_subscribers is not None or require_subscribers:
            await publisher.wait_for_subscribers(wait_subscribers or 1)
        bytes_max = min(BATCH_BYTES_MAX, publisher.record_size_max)
        reader, published = InputReader(STDIN), 0
        while count is None or published < count:
            data = await reader.read()
            payloads = source.feed(data) if data else source.finish()
            for batch in batches(islice(payloads, None if count is None else count - published), bytes_max):
                try:
                    await publisher.publish_many(batch)
                except RecordTooLarge as error:
                    raise RecordTooLarge(f"record {published + 1}: {error.message}", error.hint) from None
                except NoSubscribers:
                    raise NoSubscribers(f"the subscribers of {topic!r} left after {published} records") from None
                published += len(batch)
            if not data:
                break
