"""``shmd segment create``, ``ls``, ``stat``, ``set`` and ``rm``: what there is, whose it is, and its end."""

from __future__ import annotations

import grp
import pwd
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
import msgspec

from shmd import keys
from shmd.cli.common import connect, daemon_options, json_option, mode, remove_each, run, size
from shmd.cli.output import say, say_json
from shmd.cli.tables import Table, print_fields, print_table
from shmd.errors import SegmentNotFound
from shmd.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterable

    import shmd
    from shmd import SegmentInfo, SegmentStat


def _key(text: str) -> int:
    """An option's ``0x2a``, or decimal, as a System V key; C's negative ones, too."""
    try:
        key = int(text, 0)
    except ValueError:
        key = 0
    if not keys.is_key(key):
        raise click.BadParameter(f"{text!r} is not a key: a number from 1 to {keys.KEY_MAX:#x}")
    return key


def _ftok(text: str) -> tuple[str, int | str]:
    """An option's ``PATH:ID``, where ID is a number or one character, as C programs write it."""
    path, colon, project = text.rpartition(":")
    if not colon or not path or not project:
        raise click.BadParameter(f"{text!r} is not PATH:ID, like /etc/hosts:42 or /etc/hosts:A")
    return path, int(project) if project.isdecimal() else project


def _user(text: str) -> int:
    """A user's name or number."""
    return _number(text, "user", lambda name: pwd.getpwnam(name).pw_uid)


def _group(text: str) -> int:
    """A group's name or number."""
    return _number(text, "group", lambda name: grp.getgrnam(name).gr_gid)


def _number(text: str, kind: str, find: Any) -> int:
    if text.isdecimal():
        return int(text)
    try:
        return int(find(text))
    except KeyError:
        raise click.BadParameter(f"there is no {kind} {text!r} here") from None


@click.command()
@click.argument("name")
@click.option("--size", type=size, metavar="SIZE", help="In bytes, or like 64KiB; needed for a new one.")
@click.option("--mode", type=mode, metavar="MODE", help="Permissions, like 640.")
@click.option("--key", type=_key, metavar="KEY", help="The System V key, like 0x2a; by default a random one.")
@click.option("--ftok", type=_ftok, metavar="PATH:ID", help="The key that ftok(PATH, ID) makes in C.")
@click.option("--adopt", is_flag=True, help="Take over a segment with this key that somebody else made.")
@click.option("--exclusive", is_flag=True, help="Fail if there is one of this name.")
@click.option("--notifier", type=click.Choice(["eventfd", "fifo"]), help="What wakes those who wait: all, or one each.")
@click.option("--backing", type=click.Choice(["memory", "file"]), help="A file survives a reboot.")
@json_option
@daemon_options
def create(name: str, as_json: bool, socket_path: str | None, instance: str | None, **options: Any) -> None:
    """Have the segment NAME, as ipcmk -M: create it if there is none. Prints its id and key."""
    info = run(_create(name, socket_path, instance, **options))
    if as_json:
        say_json(info_fields(info))
    else:
        where = f"file {info.path}" if info.path else f"id {info.id}, key {info.key:#010x}"
        say(f"segment {info.name}: {where}, {info.size_bytes} bytes")


async def _create(name: str, socket_path: str | None, instance: str | None, **options: Any) -> SegmentInfo:
    async with connect(socket_path, instance, "shmd segment create") as client, client.segment(name, **options) as made:
        return made.info


@click.command()
@click.argument("pattern", default=">")
@json_option
@daemon_options
def ls(pattern: str, as_json: bool, socket_path: str | None, instance: str | None) -> None:
    """List segments, as ipcs -m, or those that match PATTERN (`*` is one token, `>` the rest)."""
    print_segments(run(_list(pattern, socket_path, instance)), as_json=as_json)


async def _list(
    pattern: str, socket_path: str | None, instance: str | None
) -> list[tuple[SegmentInfo, SegmentStat | None]]:
    async with connect(socket_path, instance, "shmd segment ls") as client:
        return await list_segments(client, pattern)


async def list_segments(client: shmd.Client, pattern: str) -> list[tuple[SegmentInfo, SegmentStat | None]]:
    """Each with what the kernel knows of it; None for one that has gone meanwhile, and for a file."""
    return [(info, await client.segment_stat(info.name)) for info in await client.segments(pattern)]


def print_segments(found: Iterable[tuple[SegmentInfo, SegmentStat | None]], *, as_json: bool) -> None:
    """The columns of ipcs -m, and the name before them."""
    if as_json:
        for info, kernel in found:
            say_json(info_fields(info) | {"attachments": kernel.attachments if kernel else None})
        return
    rows = Table("~SEGMENT", "KEY", ">SHMID", "OWNER", "PERMS", ">BYTES", ">NATTCH", "STATUS")
    for info, kernel in found:
        is_file = info.backing == "file"
        cells = (
            "-" if is_file else f"{info.key:#010x}",
            "-" if is_file else str(info.id),
            _user_name(kernel.uid if kernel else info.uid),
            f"{kernel.mode if kernel else info.mode:o}",
            str(info.size_bytes),
            "-" if is_file or not kernel else str(kernel.attachments),
            "file" if is_file else "dest" if kernel and kernel.removed else "",
        )
        rows.add(info.name, *cells)
    if rows:
        print_table(rows)


@click.command()
@click.argument("name")
@json_option
@daemon_options
def stat(name: str, as_json: bool, socket_path: str | None, instance: str | None) -> None:
    """Show all that the kernel knows of the segment NAME, as ipcs -m -i."""
    info, kernel = run(_stat(name, socket_path, instance))
    if as_json:
        say_json(info_fields(info) | asdict(kernel) | {"mode": f"{kernel.mode:04o}"})
        return
    rows = {"segment": info.name, **(_file_rows(info, kernel) if info.path else _memory_rows(kernel))}
    rows["notifier"] = info.notifier + (f" {info.fifo}" if info.fifo else "")
    rows["lock"] = f"semaphore {info.sem_id} (key {info.sem_key:#010x})" if info.sem_id >= 0 else "-"
    print_fields(rows)


def _memory_rows(kernel: SegmentStat) -> dict[str, object]:
    return {
        "key": f"{kernel.key:#010x}" + (" (marked for removal)" if kernel.removed else ""),
        "id": kernel.id,
        "size": f"{kernel.size_bytes} bytes, {format_size(kernel.allocated_bytes)} of pages",
        "access": f"mode {kernel.mode:04o}, uid {kernel.uid}, gid {kernel.gid}",
        "creator": f"uid {kernel.cuid}, gid {kernel.cgid}, pid {kernel.creator_pid}",
        "last used by": f"pid {kernel.last_pid}" if kernel.last_pid else "-",
        "attachments": kernel.attachments,
        "attached": _time(kernel.attach_time),
        "detached": _time(kernel.detach_time),
        "changed": _time(kernel.change_time),
    }


def _file_rows(info: SegmentInfo, file: SegmentStat) -> dict[str, object]:
    """What a file has of all that."""
    return {
        "file": info.path,
        "size": f"{file.size_bytes} bytes",
        "access": f"mode {file.mode:04o}, uid {file.uid}, gid {file.gid}",
        "sync": info.sync,
        "changed": _time(file.change_time),
    }


async def _stat(name: str, socket_path: str | None, instance: str | None) -> tuple[SegmentInfo, SegmentStat]:
    async with connect(socket_path, instance, "shmd segment stat") as client:
        kernel = await client.segment_stat(name)
        infos = [info for info in await client.segments(name) if info.name == name]
    if kernel is None or not infos:
        raise SegmentNotFound(f"there is no segment {name!r}", "shmd segment ls lists those that there are")
    return infos[0], kernel


@click.command("set")
@click.argument("name")
@click.option("--mode", type=mode, metavar="MODE", help="Permissions, like 640.")
@click.option("--uid", type=_user, metavar="USER", help="Its owner.")
@click.option("--gid", type=_group, metavar="GROUP", help="Its group.")
@daemon_options
def set_(name: str, socket_path: str | None, instance: str | None, **changes: int | None) -> None:
    """Give the segment NAME another owner, group or mode (IPC_SET)."""
    if all(value is None for value in changes.values()):
        raise click.UsageError("say what to change: --mode, --uid, --gid")
    run(_set(name, socket_path, instance, **changes))


async def _set(name: str, socket_path: str | None, instance: str | None, **changes: int | None) -> None:
    async with connect(socket_path, instance, "shmd segment set") as client:
        await client.set_segment(name, **changes)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@daemon_options
def rm(names: tuple[str, ...], socket_path: str | None, instance: str | None) -> None:
    """Remove segments, as ipcrm -m. The memory goes when the last process has detached."""
    run(_remove(names, socket_path, instance))


async def _remove(names: Iterable[str], socket_path: str | None, instance: str | None) -> None:
    async with connect(socket_path, instance, "shmd segment rm") as client:
        await remove_each((client.remove_segment, name) for name in names)


def info_fields(info: SegmentInfo) -> dict[str, Any]:
    """For JSON."""
    return msgspec.structs.asdict(info) | {"segment_id": info.segment_id.hex(), "mode": f"{info.mode:04o}"}


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _time(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else "never"
