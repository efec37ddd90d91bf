"""``shmd segment read`` and ``write``: a segment's bytes, to standard output and from standard input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from shmd import limits
from shmd.cli.common import connect, daemon_options, run, size
from shmd.cli.output import STDOUT, is_terminal
from shmd.cli.streams import InputReader, OutputWriter
from shmd.errors import InvalidOption
from shmd.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

STDIN: Final = 0
_LINE_BYTES: Final = 16
_HALF: Final = 8


@click.command()
@click.argument("name")
@click.option("--offset", type=size, default=0, metavar="BYTES", help="Begin there.")
@click.option("--length", type=size, metavar="BYTES", help="Read so many; by default to the end.")
@click.option("--raw", is_flag=True, help="Write the bytes as they are; on a terminal as text.")
@daemon_options
def read(name: str, socket_path: str | None, instance: str | None, **options: Any) -> None:
    """Print the bytes of the segment NAME, as hexdump -C does."""
    run(_read(name, socket_path, instance, **options))


async def _read(
    name: str, socket_path: str | None, instance: str | None, *, offset: int, length: int | None, raw: bool
) -> None:
    async with (
        connect(socket_path, instance, "shmd segment read") as client,
        client.segment(name, create=False, readonly=True) as segment,
    ):
        end = segment.size_bytes if length is None else offset + length
        _check_within(name, segment.size_bytes, offset, end)
        output = OutputWriter(STDOUT)
        show = _shown if is_terminal(STDOUT) else bytes
        for at in range(offset, end, limits.READ_BATCH_BYTES):
            piece = bytes(segment.buf[at : min(end, at + limits.READ_BATCH_BYTES)])
            await output.write(show(piece) if raw else "".join(hexdump(piece, at)).encode())
        if not raw:
            await output.write(f"{end:08x}\n".encode())


def _shown(data: bytes) -> bytes:
    """Bytes for a terminal, which must not obey them."""
    return printable(data.decode(errors="backslashreplace"), keep="\n\t").encode()


def hexdump(data: bytes, offset: int) -> Iterator[str]:
    """``data``, which lies at ``offset``, 16 bytes to a line: offset, the bytes, and those that are ASCII as text."""
    for at in range(0, len(data), _LINE_BYTES):
        line = data[at : at + _LINE_BYTES]
        left, right = line[:_HALF].hex(" "), line[_HALF:].hex(" ")
        text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in line)
        yield f"{offset + at:08x}  {left:<23}  {right:<23}  |{text}|\n"


@click.command()
@click.argument("name")
@click.option("--offset", type=size, default=0, metavar="BYTES", help="Begin there.")
@click.option("--lock", is_flag=True, help="Hold the segment's lock meanwhile.")
@click.option("--notify", is_flag=True, help="Wake those who wait for the segment afterwards.")
@daemon_options
def write(name: str, socket_path: str | None, instance: str | None, **options: Any) -> None:
    """Copy standard input into the segment NAME; all of it, or nothing where it does not fit."""
    run(_write(name, socket_path, instance, **options))


async def _write(
    name: str, socket_path: str | None, instance: str | None, *, offset: int, lock: bool, notify: bool
) -> None:
    async with (
        connect(socket_path, instance, "shmd segment write") as client,
        client.segment(name, create=False) as segment,
    ):
        _check_within(name, segment.size_bytes, offset, offset)
        data = await _read_input(name, segment.size_bytes - offset)
        if lock:
            async with segment.lock():
                segment.buf[offset : offset + len(data)] = data
        else:
            segment.buf[offset : offset + len(data)] = data
        if notify:
            segment.notify()


async def _read_input(name: str, room: int) -> bytearray:
    reader, data = InputReader(STDIN), bytearray()
    while piece := await reader.read():
        data += piece
        if len(data) > room:
            raise InvalidOption(
                f"standard input is longer than the {room} bytes that segment {name!r} has from there on",
                "nothing was written; make the segment larger, or cut the input",
            )
    return data


def _check_within(name: str, size_bytes: int, start: int, end: int) -> None:
    if end > size_bytes or start > size_bytes:
        raise InvalidOption(
            f"bytes {start} to {end} do not lie within segment {name!r} of {size_bytes} bytes",
            "see --offset and --length",
        )
