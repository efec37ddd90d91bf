"""``shmd sub``: a topic to standard output.

What has arrived is written at once and in order; when nothing more is there, nothing is kept back. If the reader of the
output is slow, so is this subscriber: on a `wait` topic the publishers then wait, on a `discard-old` topic it loses the
oldest records, and how many is the last word on standard error.
JSON has no bytes, times or NaN: they become base64 text, ISO 8601 text and null. ``--raw`` writes payloads as they are.

On a terminal control characters, which a publisher chose, become escapes: JSON's in JSON, which means the same; and
``--raw`` shows each payload as a line of text. Into a pipe or a file everything goes exactly as it is.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import click
import msgspec

from shmd.cli.common import connect, daemon_options, run, wait_option
from shmd.cli.output import STDOUT, complain, is_terminal
from shmd.cli.streams import OutputWriter, frame
from shmd.errors import DecodeError, TopicClosed
from shmd.printable import printable, printable_json

if TYPE_CHECKING:
    from collections.abc import Callable

    import shmd

    Encode: TypeAlias = Callable[[list[shmd.Record[Any]]], bytes]

Start: TypeAlias = Literal["new", "last", "all"] | int | datetime

RECORDS_AT_A_TIME: Final = 4096
"""Taken and written together, if they are there."""

_STARTS: Final[dict[str, Start]] = {"new": "new", "last": "last", "all": "all"}
_encoder: Final = msgspec.json.Encoder(enc_hook=str)


def start_type(text: str) -> Start:
    """``new``, ``last``, ``all``, a sequence number, or a point in time (local, unless it names its zone)."""
    if text in _STARTS:
        return _STARTS[text]
    if text.isdecimal():
        return int(text)
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError:
        raise click.BadParameter(
            f"{text!r}: use new, last, all, a sequence number or a time like 2030-12-31T23:59:59"
        ) from None


@click.command()
@click.argument("topic")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after this many records.")
@click.option(
    "--start",
    type=start_type,
    metavar="START",
    default="new",
    show_default=True,
    help="new, last, all, a sequence number, or a time like 2030-12-31T23:59:59.",
)
@click.option(
    "--raw",
    is_flag=True,
    help="Write payloads, each after its length as 4 bytes, little-endian; on a terminal as text.",
)
@click.option("--json", "whole", is_flag=True, help="Write whole records: topic, seq, time_ns, publisher, lost, value.")
@click.option("--until-closed", is_flag=True, help="End when all publishers have gone and all was read.")
@click.option("--tap", is_flag=True, help="Only listen: never hold publishers back.")
@wait_option
@daemon_options
def sub(
    topic: str,
    socket_path: str | None,
    instance: str | None,
    count: int | None,
    start: Start,
    raw: bool,
    whole: bool,
    until_closed: bool,
    tap: bool,
    wait: bool,
) -> None:
    """Write each record of TOPIC (or of all topics that match a pattern) as a line of JSON.

    TOPIC need not exist yet. With --until-closed, one that has no publisher yet is waited for; those that came and went
    before count as well, unless it starts at new.
    """
    if raw and whole:
        raise click.UsageError("--raw and --json exclude each other")
    encode: Encode = _encode_raw if raw else _encode_whole if whole else _encode_values
    if is_terminal(STDOUT):
        encode = _show_raw if raw else _shown(encode)
    options = {"start": start, "tethered": not tap, "until_closed": until_closed}
    run(_write_records(topic, socket_path, instance, encode, count=count, wait=wait, **options))


async def _write_records(
    topic: str,
    socket_path: str | None,
    instance: str | None,
    encode: Encode,
    *,
    count: int | None,
    wait: bool,
    **options: Any,
) -> None:
    output = OutputWriter(STDOUT)
    async with (
        output.while_read(),
        connect(socket_path, instance, "shmd sub", wait=wait) as client,
        client.subscribe(topic, **options) as subscription,
    ):
        written = 0
        try:
            while count is None or written < count:
                wanted = RECORDS_AT_A_TIME if count is None else min(count - written, RECORDS_AT_A_TIME)
                records = await subscription.get_many(wanted)
                await _write(output, records, encode)
                written += len(records)
        except TopicClosed:
            return  # the end of what --until-closed asked for
        finally:
            if subscription.lost:
                complain(f"{subscription.lost} records lost")


async def _write(output: OutputWriter, records: list[shmd.Record[Any]], encode: Encode) -> None:
    """All records; or those before one that cannot be written as asked, and then the reason why not."""
    try:
        data = encode(records)
    except (DecodeError, TypeError, RecursionError):
        for record in records:
            await output.write(_encode_or_explain(record, encode))
    else:
        await output.write(data)


def _encode_or_explain(record: shmd.Record[Any], encode: Encode) -> bytes:
    try:
        return encode([record])
    except (DecodeError, TypeError, RecursionError) as error:
        reason = error.message if isinstance(error, DecodeError) else str(error)
        raise DecodeError(f"record {record.seq} of {record.topic} is no JSON: {reason}", "--raw shows it") from None


def _encode_values(records: list[shmd.Record[Any]]) -> bytes:
    return _encoder.encode_lines([record.value for record in records])


def _encode_whole(records: list[shmd.Record[Any]]) -> bytes:
    return _encoder.encode_lines(
        [
            {
                "topic": record.topic,
                "seq": record.seq,
                "time_ns": record.time_ns,
                "publisher": record.publisher,
                "lost": record.lost,
                "value": record.value,
            }
            for record in records
        ]
    )


def _encode_raw(records: list[shmd.Record[Any]]) -> bytes:
    return b"".join([frame(record.raw) for record in records])


def _show_raw(records: list[shmd.Record[Any]]) -> bytes:
    return b"".join([f"{printable(record.raw.decode(errors='backslashreplace'))}\n".encode() for record in records])


def _shown(encode: Encode) -> Encode:
    """The same JSON, for a terminal."""
    return lambda records: printable_json(encode(records).decode()).encode()
