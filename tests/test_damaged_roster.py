"""A roster in which something stands that no daemon writes: the next daemon comes up with the rest, or says why not."""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import sysv_ipc

from shmd import _core, liveness, roster, roster_layout, segment, sysv
from shmd.config import DaemonConfig
from shmd.daemon import Daemon
from shmd.errors import ConfigError, VersionMismatch
from shmd.protocol import (
    Declare,
    Done,
    ListTopics,
    OpenPublisher,
    OpenSubscriber,
    PublisherGranted,
    RemoveTopic,
    StatReply,
    StatTopic,
    SubscriberGranted,
    TopicInfo,
    TopicList,
    TopicOptions,
    TopicReply,
)
from shmd.roster_layout import PARTICIPANT, QUARANTINED, REMOVING, TOPIC
from shmd.roster_reader import RosterReader
from tests.raw_peer import RawPeer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.may_block

MAX = 2**64 - 1
MAX32 = 2**32 - 1


def double(value: float) -> int:
    return int.from_bytes(struct.pack("<d", value), "little")


@dataclass
class Wreck:
    """What the first daemon left: topics ``hurt`` and ``whole``, each with a publisher and a subscriber."""

    config: DaemonConfig
    hurt: TopicInfo
    whole: TopicInfo

    def damage(self, table: str, field: str, value: int | bytes, topic: TopicInfo | None = None) -> None:
        """Overwrite one field: of the header, or of all rows about a topic."""
        fields, at, count = {
            "header": (roster_layout.HEADER, 0, 1),
            "topic": (TOPIC, roster_layout.TOPICS_AT, 8),
            "participant": (PARTICIPANT, roster_layout.PARTICIPANTS_AT, 16),
        }[table]
        offset, size = fields.table[field]
        topic_id = (topic or self.hurt).topic_id
        with segment.attach(self.roster_id(), readonly=False) as held:
            for start in range(at, at + count * fields.size_bytes, fields.size_bytes):
                if table == "header" or topic_id in bytes(held.buf[start : start + fields.size_bytes]):
                    raw = value.to_bytes(8, "little")[:size] if isinstance(value, int) else value.ljust(size, b"\0")
                    held.buf[start + offset : start + offset + size] = raw

    def roster_id(self) -> int:
        keys = roster.candidate_keys(self.config.instance_id())
        return next(found.id for found in sysv.list_segments() if found.key in keys)


async def use(peer: RawPeer, name: str) -> None:
    """Everything that an adopted topic is there for."""
    await peer.ask(PublisherGranted, OpenPublisher(id=peer.new_id(), topic=name))
    await peer.ask(SubscriberGranted, OpenSubscriber(id=peer.new_id(), topic=name))
    await peer.ask(StatReply, StatTopic(id=peer.new_id(), topic=name))


@pytest.fixture
async def wreck(tmp_path: Path) -> Wreck:
    config = DaemonConfig(runtime_dir=tmp_path, total_bytes=64 << 20)
    infos = []
    async with Daemon(config) as daemon:
        peer = await RawPeer.to(daemon)
        for name in ("hurt", "whole"):
            options = TopicOptions(when_full="wait", size_bytes=4096)
            reply = await peer.ask(TopicReply, Declare(id=peer.new_id(), topic=name, options=options))
            infos.append(reply.topic)
            await use(peer, name)
    await peer.hung_up()
    await peer.close(bye=False)
    return Wreck(config, *infos)


@pytest.fixture(autouse=True)
def _swept() -> Iterator[None]:
    """What a daemon leaves alone is for the test to remove."""
    before = {found.id for found in sysv.list_segments()}
    yield
    for found in sysv.list_segments():
        if found.id not in before and found.creator_pid == os.getpid():
            segment.remove(found.id)


async def topics_of_next_daemon(wreck: Wreck) -> set[str]:
    """Which it has adopted. All of them can be used and removed, and so can new ones."""
    async with Daemon(wreck.config) as daemon, await RawPeer.to(daemon) as peer:
        adopted = [info.name for info in (await peer.ask(TopicList, ListTopics(id=peer.new_id()))).topics]
        for name in ("new", *adopted):
            await use(peer, name)
        for name in ("new", *adopted):
            await peer.ask(Done, RemoveTopic(id=peer.new_id(), topic=name))
    return set(adopted)


HOPELESS = [
    ("name", b"\xff\xfe"),
    ("name", b""),
    ("name", b"a..b"),
    ("name", b"hurt\n"),
    ("size_bytes", 0),
    ("size_bytes", MAX),
    ("mode", MAX32),
    ("created_ns", MAX),
    ("idle_ttl_s", double(math.nan)),
    ("idle_ttl_s", double(-1)),
    ("stall_timeout_s", double(math.inf)),
    ("log_key", MAX32),
    ("state", QUARANTINED),
    ("state", 0xFF),
]
HARMLESS = [("incarnation_max", MAX), ("uid", MAX32), ("declared_by", MAX32)]


@pytest.mark.parametrize(("field", "value"), HOPELESS)
async def test_topic_whose_row_is_damaged_is_left_alone(wreck: Wreck, field: str, value: int | bytes) -> None:
    wreck.damage("topic", field, value)
    assert await topics_of_next_daemon(wreck) == {"whole"}
    for shmid in (wreck.hurt.log_id, wreck.hurt.ctl_id):
        assert not segment.stat(shmid).removed
    assert await topics_of_next_daemon(wreck) == set()


@pytest.mark.parametrize(("field", "value"), [("log_id", MAX32), ("ctl_id", 2**31), ("state", REMOVING)])
async def test_topic_whose_row_says_that_it_is_gone_is_gone(wreck: Wreck, field: str, value: int) -> None:
    wreck.damage("topic", field, value)
    assert await topics_of_next_daemon(wreck) == {"whole"}


@pytest.mark.parametrize("field", ["log_id", "ctl_id"])
@pytest.mark.parametrize("state", [1, REMOVING])
async def test_row_that_names_a_strangers_segment_does_not_remove_it(wreck: Wreck, field: str, state: int) -> None:
    size_bytes = segment.stat(getattr(wreck.hurt, field)).size_bytes
    stranger = sysv_ipc.SharedMemory(sysv_ipc.IPC_PRIVATE, sysv_ipc.IPC_CREX, size=size_bytes)
    stranger.detach()
    for name, value in ((field, stranger.id), ("state", state)):
        wreck.damage("topic", name, value)
    assert await topics_of_next_daemon(wreck) == {"whole"}
    assert not segment.stat(stranger.id).removed


@pytest.mark.parametrize("state", [1, REMOVING])
async def test_two_rows_of_one_topic_are_one(wreck: Wreck, state: int) -> None:
    wreck.damage("topic", "state", state, wreck.whole)
    wreck.damage("topic", "topic_id", wreck.whole.topic_id)
    wreck.damage("topic", "state", state, wreck.whole)
    assert "new" not in await topics_of_next_daemon(wreck)
    assert await topics_of_next_daemon(wreck) == set()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("client", value) for value in (0, 1, 2 << 32 | 1, MAX)),
        *(("handle", value) for value in (0, 5, MAX)),
        *(("kind", value) for value in (0, 1, 2, 3, MAX32)),
        *(("slot", value) for value in (0, MAX32)),
        *(("pid", value) for value in (0, 1, MAX32)),
        *(("start_time", value) for value in (0, MAX)),
        *(("incarnation", 0), ("publisher", MAX32), ("uid", MAX32), ("name", b"\xff" * 64)),
        ("topic_id", bytes(16)),
    ],
)
async def test_damaged_participants_cost_no_more_than_themselves(wreck: Wreck, field: str, value: int | bytes) -> None:
    wreck.damage("participant", field, value)
    assert await topics_of_next_daemon(wreck) == {"hurt", "whole"}


@pytest.mark.parametrize(("field", "value"), HARMLESS)
async def test_topic_is_adopted_in_spite_of_harmless_damage(wreck: Wreck, field: str, value: int) -> None:
    wreck.damage("topic", field, value)
    config = wreck.config
    async with Daemon(config) as daemon, await RawPeer.to(daemon) as peer:
        names = [info.name for info in (await peer.ask(TopicList, ListTopics(id=peer.new_id()))).topics]
        assert names == ["hurt", "whole"]


async def test_participants_that_share_a_handle_are_told_apart(wreck: Wreck) -> None:
    for topic in (wreck.hurt, wreck.whole):
        wreck.damage("participant", "handle", 77, topic)
    assert await topics_of_next_daemon(wreck) == {"hurt", "whole"}


@pytest.mark.parametrize(
    "field",
    ["pid", "start_time", "pid_namespace", "time_namespace", "topic_rows", "topics_high", "lasting", "instance"],
)
async def test_daemon_comes_up_in_spite_of_what_the_header_says_of_the_last(wreck: Wreck, field: str) -> None:
    wreck.damage("header", field, MAX if field != "instance" else b"\xff" * 64)
    assert await topics_of_next_daemon(wreck) == {"hurt", "whole"}


@pytest.mark.parametrize(
    ("field", "value"), [("generation", MAX), ("generation", 2**31), ("publishers_numbered", 2**32)]
)
async def test_daemon_refuses_a_header_that_has_lost_count(wreck: Wreck, field: str, value: int) -> None:
    wreck.damage("header", field, value)
    with pytest.raises(ConfigError, match=r"damaged.*ipcrm"):
        await topics_of_next_daemon(wreck)


async def test_daemon_refuses_a_header_of_another_version_until_it_is_removed(wreck: Wreck) -> None:
    wreck.damage("header", "version", MAX32)
    with pytest.raises(VersionMismatch) as refusal:
        await topics_of_next_daemon(wreck)
    assert f"ipcrm -m {wreck.roster_id()}" in str(refusal.value)
    segment.remove(wreck.roster_id())
    assert await topics_of_next_daemon(wreck) == set()


@pytest.mark.parametrize("field", ["magic", "instance_id"])
async def test_daemon_makes_another_roster_where_its_own_is_not_to_be_known(wreck: Wreck, field: str) -> None:
    wreck.damage("header", field, b"\xff")
    assert await topics_of_next_daemon(wreck) == set()


@pytest.mark.parametrize("pid", [2**22 + 1, 2**31, MAX32, MAX])
def test_pid_that_no_process_can_have_is_nobodys(pid: int) -> None:
    assert liveness.is_dead(liveness.Process(pid, 1))


def test_full_publisher_reads_any_row_without_an_error(written_roster: Callable[[], roster.Roster]) -> None:
    """What a bystander asks the roster, of rows in which every number is the largest."""
    opened = written_roster()
    with segment.attach(opened.id, readonly=False) as held, RosterReader(opened.id) as reader:
        at = roster_layout.PARTICIPANTS_AT
        held.buf[at + 8 : at + PARTICIPANT.size_bytes] = b"\xff" * (PARTICIPANT.size_bytes - 8)
        offset, size = PARTICIPANT.table["kind"]
        held.buf[at + offset : at + offset + size] = (2).to_bytes(4, "little")
        _core.store_word(held.mapping, at, 1)
        _core.store_word(held.mapping, roster_layout.HEADER.table["participants_high"][0], MAX)
        assert reader.proves_dead(b"\xff" * 16, MAX32, MAX32)


@pytest.fixture
def written_roster() -> Iterator[Callable[[], roster.Roster]]:
    opened = roster.open_roster("damaged", bytes(range(16)))
    opened.take_over()
    yield lambda: opened
    opened.close(remove=True)
