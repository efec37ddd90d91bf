"""``shmd ls``, ``stat``, ``rm``: what there is, how topics fare, and their end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click
import msgspec

from shmd.cli.common import connect, daemon_options, json_option, remove_each, run
from shmd.cli.output import say, say_json
from shmd.cli.segment.manage import list_segments, print_segments
from shmd.cli.tables import Table, print_fields, print_table
from shmd.errors import NoSuchTopic
from shmd.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shmd import PublisherStat, SegmentInfo, SegmentStat, SubscriberStat, TopicInfo, TopicStat


@click.command()
@click.argument("pattern", default=">")
@json_option
@daemon_options
def ls(pattern: str, as_json: bool, socket_path: str | None, instance: str | None) -> None:
    """List topics and raw segments, or those that match PATTERN (`*` is one token, `>` the rest)."""
    topics, segments = run(list_all(pattern, socket_path, instance))
    print_topics(topics, as_json=as_json)
    if topics and segments and not as_json:
        say()
    print_segments(segments, as_json=as_json)


def print_topics(topics: Iterable[TopicInfo], *, as_json: bool) -> None:
    if as_json:
        for topic in topics:
            say_json(_info_fields(topic))
    elif topics:
        rows = Table("~TOPIC", ">SIZE", "WHEN FULL", "EXCLUSIVE", "NOTIFIER", "MODE", ">UID", ">GID")
        for topic in topics:
            exclusive = "yes" if topic.exclusive else "no"
            cells = (
                format_size(topic.size_bytes),
                topic.when_full,
                exclusive,
                topic.notifier,
                f"{topic.mode:04o}",
                topic.uid,
                topic.gid,
            )
            rows.add(topic.name, *cells)
        print_table(rows)


@click.command()
@click.argument("topic")
@json_option
@daemon_options
def stat(topic: str, as_json: bool, socket_path: str | None, instance: str | None) -> None:
    """Show one topic: what it holds, who publishes, and how far behind each subscriber is."""
    found = run(_stat(topic, socket_path, instance))
    if as_json:
        say_json(_stat_fields(found))
        return
    print_fields(_stat_summary(found))
    if found.publishers:
        rows = Table(">PUBLISHER", ">PID", ">UID", "STATE", "~NAME")
        for publisher in found.publishers:
            rows.add(publisher.publisher, publisher.pid, publisher.uid, _state(publisher), publisher.name)
        print_table(rows)
    if found.subscribers:
        rows = Table(">SUBSCRIBER", ">PID", ">UID", "HOLDS BACK", ">BEHIND", ">LOST", "STATE", "~NAME")
        for sub in found.subscribers:
            holds_back, behind = "yes" if sub.tethered else "no", format_size(sub.lag_bytes)
            rows.add(sub.slot, sub.pid, sub.uid, holds_back, behind, sub.lost, _state(sub), sub.name)
        print_table(rows)
    if found.more_participants:
        say(f"and {found.more_participants} more participants")


@click.command()
@click.argument("topics", nargs=-1, required=True, metavar="TOPIC...")
@daemon_options
def rm(topics: tuple[str, ...], socket_path: str | None, instance: str | None) -> None:
    """Remove topics and all their records. Whoever has one open is told."""
    run(_remove(topics, socket_path, instance))


async def list_all(
    pattern: str, socket_path: str | None, instance: str | None
) -> tuple[list[TopicInfo], list[tuple[SegmentInfo, SegmentStat | None]]]:
    async with connect(socket_path, instance, "shmd ls") as client:
        return await client.topics(pattern), await list_segments(client, pattern)


async def _stat(topic: str, socket_path: str | None, instance: str | None) -> TopicStat:
    async with connect(socket_path, instance, "shmd stat") as client:
        found = await client.stat(topic)
    if found is None:
        raise NoSuchTopic(f"there is no topic {topic!r}", "shmd ls lists those that there are")
    return found


async def _remove(topics: Iterable[str], socket_path: str | None, instance: str | None) -> None:
    async with connect(socket_path, instance, "shmd rm") as client:
        await remove_each((client.remove, topic) for topic in topics)


def _info_fields(topic: TopicInfo) -> dict[str, Any]:
    return msgspec.structs.asdict(topic) | {"topic_id": topic.topic_id.hex(), "mode": f"{topic.mode:04o}"}


def _stat_fields(stat: TopicStat) -> dict[str, Any]:
    return _info_fields(stat.topic) | {
        name: value for name, value in msgspec.structs.asdict(stat).items() if name != "topic"
    }


def _state(who: PublisherStat | SubscriberStat) -> str:
    return "stopped" if who.stopped else "-"


def _stat_summary(stat: TopicStat) -> dict[str, object]:
    topic = stat.topic
    rows: dict[str, object] = {
        "topic": topic.name,
        "size": f"{format_size(topic.size_bytes)}, {format_size(stat.tail - stat.head)} in use",
        "when full": topic.when_full + (", exclusive" if topic.exclusive else ""),
        "notifier": topic.notifier + (f" in {topic.fifo_dir}" if topic.fifo_dir else ""),
        "access": f"mode {topic.mode:04o}, uid {topic.uid}, gid {topic.gid}",
        "segments": f"log {topic.log_id} (key 0x{topic.log_key:08x}), ctl {topic.ctl_id} (key 0x{topic.ctl_key:08x})",
        "created": _time(topic.created_ns),
        "records": f"{stat.first_seq} to {stat.last_seq}" if stat.published else "none yet",
        "published": f"{stat.published} records, {format_size(stat.published_bytes)}",
        "last record": _time(stat.last_time_ns) if stat.published else "-",
    }
    if stat.lock_owner_tid:
        rows["locked by"] = f"thread {stat.lock_owner_tid}" + (" (stopped)" if stat.lock_owner_stopped else "")
    if stat.takeovers:
        rows["lock taken over"] = f"{stat.takeovers} times from publishers that died"
    return rows


def _time(time_ns: int) -> str:
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(seconds))}.{nanoseconds // 1_000_000:03d}"
