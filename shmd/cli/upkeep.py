"""``shmd stop``, ``purge`` and ``fsck``: the end of a daemon, of its topics, and of what nobody needs any more."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from itertools import repeat
from typing import TYPE_CHECKING, Any

import click

from shmd import inventory
from shmd.cli.common import connect, daemon_options, json_option, readable, remove_each, run
from shmd.cli.output import complain, say_json
from shmd.cli.tables import Table, print_table
from shmd.cli.topics import list_all
from shmd.config import DaemonConfig, instance_id
from shmd.errors import DaemonUnavailable, ShmdError
from shmd.places import DEFAULT_INSTANCE
from shmd.units import format_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shmd.inventory import Found


@click.command()
@daemon_options
def stop(socket_path: str | None, instance: str | None) -> None:
    """Stop the daemon. Its topics stay, for the next one; `shmd purge` removes them."""
    run(_stop(socket_path, instance))


@click.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@daemon_options
def purge(yes: bool, socket_path: str | None, instance: str | None) -> None:
    """Remove every topic of the instance, and every segment that shmd made in memory.

    Files, and segments that were adopted from other programs, stay: see `shmd segment rm`. Without a daemon, of
    --instance or the default one, and with what FIFOs are left of it in the default runtime directory.
    """
    try:
        topics, found = run(list_all(">", socket_path, instance))
    except DaemonUnavailable as error:
        if socket_path or (instance is None and os.environ.get("SHMD_SOCKET")):
            raise  # a socket does not say whose it would be
        _purge_without_daemon(instance or DEFAULT_INSTANCE, error, yes=yes)
        return
    segments = [info.name for info, _ in found if info.backing == "memory" and not info.adopted]
    if (topics or segments) and not yes:
        what = f"{len(topics)} topics and all their records" + (f", and {len(segments)} segments" if segments else "")
        click.confirm(f"Remove {what}?", abort=True, err=True)
    run(_purge([topic.name for topic in topics], segments, socket_path, instance))


@click.command()
@click.option("--reclaim", is_flag=True, help="Remove the orphaned ones after showing all.")
@json_option
def fsck(reclaim: bool, as_json: bool) -> None:
    """List every segment on this host that shmd made, and who still needs it; needs no daemon.

    alive: its daemon runs, or somebody is attached. kept: for the instance's next daemon (`shmd purge` removes it).
    orphaned: nothing will ever find it again.
    """
    segments = inventory.in_order(inventory.take().segments)
    if as_json:
        for found in segments:
            say_json(_fields(found))
    else:
        _show(segments)
    if reclaim:
        _reclaim([found for found in segments if found.state == "orphaned"])


async def _stop(socket_path: str | None, instance: str | None) -> None:
    """Returns when its process is gone, if that can be seen from here."""
    logging.getLogger("shmd.client").setLevel(logging.ERROR)  # that the daemon hangs up is what was asked for
    async with connect(socket_path, instance, "shmd stop") as client:
        with contextlib.ExitStack() as stack:
            pidfd = None
            with contextlib.suppress(OSError):  # of another PID namespace
                pidfd = os.pidfd_open(client.daemon_pid)
                stack.callback(os.close, pidfd)
            await client.stop_daemon()
            if pidfd is not None:
                await readable(pidfd)


async def _purge(topics: Sequence[str], segments: Sequence[str], socket_path: str | None, instance: str | None) -> None:
    async with connect(socket_path, instance, "shmd purge") as client:
        await remove_each([*zip(repeat(client.remove), topics), *zip(repeat(client.remove_segment), segments)])


def _purge_without_daemon(instance: str, unavailable: DaemonUnavailable, *, yes: bool) -> None:
    """By the roster that the daemon left. If there is none, all that may be left are FIFOs in the runtime directory; if
    there are none, either, the daemon is what was missing.
    """
    instance_bytes, instance_dir = instance_id(instance, os.getuid()), DaemonConfig(instance=instance).instance_dir
    found = inventory.take().of(instance_bytes).segments
    if not found:
        if not inventory.remove_fifos(instance_dir):
            raise unavailable
        return
    segments = [one for one in found if not one.stat.removed]  # those go by themselves, with whoever is attached
    if segments and not yes:
        _show(inventory.in_order(segments))
        click.confirm(f"There is no daemon. Remove these {len(segments)} segments?", abort=True, err=True)
    inventory.remove_instance(instance_bytes, instance_dir)


def _reclaim(orphans: Sequence[Found]) -> None:
    """Every one that can be removed; then the error, if there was one, of the last that could not."""
    failures: list[ShmdError] = []
    for found in orphans:
        try:
            inventory.reclaim(found)
        except ShmdError as error:
            failures.append(error)
    complain(f"removed {len(orphans) - len(failures)} of {len(orphans)} orphaned segments")
    for failure in failures[:-1]:
        complain(str(failure))
    if failures:
        raise failures[-1]


def _show(segments: Sequence[Found]) -> None:
    if not segments:
        return
    shown = Table(">SHMID", "KIND", "STATE", ">UID", ">ATTACHED", ">AGE", ">SIZE", "~INSTANCE", "~TOPIC")
    for found in segments:
        stat = found.stat
        cells = (
            stat.id,
            found.kind,
            found.state,
            stat.cuid,
            stat.attachments,
            _age(found),
            format_size(stat.size_bytes),
        )
        shown.add(*cells, found.instance or found.instance_id.hex(), found.topic)
    print_table(shown)


def _fields(found: Found) -> dict[str, Any]:
    stat = found.stat
    return {
        "shmid": stat.id,
        "key": stat.key,
        "kind": found.kind,
        "state": found.state,
        "uid": stat.uid,
        "creator_uid": stat.cuid,
        "creator_pid": stat.creator_pid,
        "mode": f"{stat.mode:04o}",
        "attachments": stat.attachments,
        "age_s": _age_s(found),
        "size_bytes": stat.size_bytes,
        "instance": found.instance,
        "instance_id": found.instance_id.hex(),
        "topic": found.topic,
        "topic_id": found.topic_id.hex(),
    }


def _age_s(found: Found) -> int:
    """Since its owner or mode was last changed, which shmd does once, when it makes it."""
    return max(0, int(time.time()) - found.stat.change_time)


def _age(found: Found) -> str:
    seconds = _age_s(found)
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"
