"""The roster: rows that are there or not, found again by key and creator, and read by anybody while it changes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shmd import _core, limits, liveness, roster, segment, sysv
from shmd import roster_layout as layout
from shmd.errors import ConfigError, LimitExceeded, VersionMismatch
from shmd.roster import open_roster
from shmd.roster_layout import LIVE, QUARANTINED, REMOVING, ParticipantRow, SegmentRow, TopicRow
from shmd.roster_reader import RosterReader
from tests.test_layout import documented_layout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shmd.roster import Roster

pytestmark = pytest.mark.may_block
INSTANCE_ID = bytes(range(16))


def topic(number: int = 1, name: str = "t", *, attached: bool = True) -> TopicRow:
    return TopicRow(
        log_id=1,
        log_key=2,
        ctl_id=3,
        ctl_key=4,
        size_bytes=4096,
        wait=True,
        exclusive=False,
        attached=attached,
        mode=0o640,
        uid=5,
        gid=6,
        declared_by=7,
        created_ns=8,
        idle_ttl_s=0.1,
        stall_timeout_s=None,
        topic_id=number.to_bytes(16, "little"),
        name=name,
    )


def participant(handle: int = 1, *, pid: int | None = None, start_time: int | None = None) -> ParticipantRow:
    pid = os.getpid() if pid is None else pid
    return ParticipantRow(
        client=1 << 32 | 1,
        handle=handle,
        topic_id=topic().topic_id,
        kind="subscriber",
        slot=handle,
        incarnation=9,
        tethered=True,
        uid=1,
        gid=2,
        pid=pid,
        start_time=liveness.start_time(pid) if start_time is None else start_time,
        pid_namespace=3,
        name="desk",
    )


def raw_segment() -> SegmentRow:
    return SegmentRow(
        id=1,
        key=2,
        size_bytes=4097,
        adopted=True,
        file=False,
        attached=False,
        fifo=True,
        mode=0o640,
        uid=5,
        gid=6,
        creator_uid=7,
        creator_gid=8,
        declared_by=9,
        created_ns=10,
        segment_id=bytes(range(100, 116)),
        name="s",
    )


@pytest.fixture
def written() -> Iterator[Roster]:
    opened = open_roster("test", INSTANCE_ID)
    opened.take_over()
    yield opened
    opened.close(remove=True)


@pytest.fixture
def reader(written: Roster) -> Iterator[RosterReader]:
    with RosterReader(written.id) as attached:
        yield attached


def lasting_of(reader: RosterReader) -> RosterReader:
    lasting = reader.lasting()
    assert lasting is not None
    return lasting


def rosters() -> list[bool]:
    """Of each segment of a roster there is, whether it is marked removed."""
    return sorted(found.removed for found in sysv.list_segments() if found.size_bytes == layout.ROSTER_BYTES)


class TestRows:
    def test_rows_are_read_as_they_were_noted_and_gone_when_forgotten(
        self, written: Roster, reader: RosterReader
    ) -> None:
        written.note_topic(topic())
        written.note_participant(participant())
        assert reader.topics() == [topic()]
        assert reader.participants() == [participant()]
        written.forget_participant(*participant().key)
        written.forget_topic(topic().topic_id)
        assert (reader.topics(), reader.participants()) == ([], [])

    def test_states_and_incarnations_are_seen(self, written: Roster, reader: RosterReader) -> None:
        written.note_topic(topic())
        for incarnation in (3, 2):
            written.raise_incarnation(topic().topic_id, incarnation)
        assert reader.topics()[0].incarnation_max == 3
        written.begin_removal(topic().topic_id)
        assert reader.topics()[0].state == REMOVING
        written.quarantine(topic().topic_id)
        assert reader.topics()[0].state == QUARANTINED

    def test_intents_are_there_from_note_to_clear(self, written: Roster, reader: RosterReader) -> None:
        with written.intent() as intent:
            intent.note_topic(10, 11)
            intent.note_segment(12, 13)
            with lasting_of(reader) as lasting:
                (row,) = lasting.intents()
            assert (row.segment_keys, row.semaphore_key, row.pid) == ((12,), 13, os.getpid())
        assert written.intents() == []

    @pytest.mark.parametrize("lasts", [True, False])
    def test_raw_segments_are_read_as_they_were_noted_and_gone_when_forgotten(
        self, written: Roster, reader: RosterReader, lasts: bool
    ) -> None:
        row = replace(raw_segment(), attached=not lasts)
        written.note_segment(row)
        with ExitStack() as stack:
            where = stack.enter_context(lasting_of(reader)) if lasts else reader
            assert where.segments() == [row]
            written.begin_segment_removal(row.segment_id)
            assert where.segments()[0].state == REMOVING
        written.forget_segment(row.segment_id)
        assert written.segments() == []
        assert reader.lasting() is None

    def test_semaphore_lasts_whatever_its_segment_does(self, written: Roster, reader: RosterReader) -> None:
        written.note_segment(replace(raw_segment(), attached=True, sem_id=3, sem_key=4))
        assert reader.segments() == []
        written.forget_segment(raw_segment().segment_id)

    def test_users_of_raw_segments_are_noted_beside_them(self, written: Roster) -> None:
        written.note_segment(raw_segment())
        row = replace(participant(), kind="segment", topic_id=raw_segment().segment_id)
        written.note_participant(row)
        assert written.participants() == [row]
        written.forget_segment(raw_segment().segment_id)
        written.forget_participant(*row.key)

    def test_raw_segments_beyond_the_rows_are_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "SEGMENTS_MAX", 0)
        opened = open_roster("test", INSTANCE_ID)
        with pytest.raises(LimitExceeded):
            opened.note_segment(raw_segment())
        opened.close(remove=True)

    @pytest.mark.parametrize("attached", [True, False])
    def test_topics_beyond_the_rows_are_refused(self, attached: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "TOPICS_MAX", 1)
        opened = open_roster("test", INSTANCE_ID)
        opened.note_topic(topic(attached=attached))
        with pytest.raises(LimitExceeded):
            opened.note_topic(topic(2, attached=attached))
        opened.forget_topic(topic().topic_id)
        opened.note_topic(topic(2, attached=attached))
        opened.close(remove=True)

    def test_memory_of_rows_that_were_never_used_is_not_touched(self, written: Roster, reader: RosterReader) -> None:
        written.note_topic(topic())
        written.note_participant(participant())
        assert (len(reader.topics()), len(reader.participants()), reader.intents()) == (1, 1, [])
        (rss_bytes,) = (found.rss_bytes for found in sysv.list_segments() if found.id == written.id)
        assert rss_bytes is not None
        assert rss_bytes // os.sysconf("SC_PAGE_SIZE") <= 4, "header, and the first page of each table"

    def test_rows_beyond_the_table_are_not_looked_for(self, written: Roster, reader: RosterReader) -> None:
        with segment.attach(written.id, readonly=False) as forged:
            for field in ("topics_high", "participants_high", "segments_high"):
                _core.store_word(forged.mapping, layout.HEADER.table[field][0], 2**64 - 1)
        assert (reader.topics(), reader.participants()) == ([], [])

    def test_publisher_numbers_are_remembered(self, written: Roster) -> None:
        written.note_topic(topic())
        written.note_participant(replace(participant(), kind="publisher", publisher=17))
        assert written.header.publishers_numbered == 17

    @pytest.mark.parametrize("word", [0, LIVE, 0xFF])
    def test_bytes_that_no_daemon_wrote_raise_nothing(self, written: Roster, reader: RosterReader, word: int) -> None:
        with segment.attach(written.id, readonly=False) as forged:
            forged.buf[104:120] = b"\xff" * 16
            for start in (layout.TOPICS_AT, layout.PARTICIPANTS_AT, layout.INTENTS_AT, layout.SEGMENTS_AT):
                forged.buf[start + 8 : start + 64] = os.urandom(56)
                _core.store_word(forged.mapping, start, word)
        reader.topics(), reader.participants(), reader.intents(), reader.segments()


class TestProof:
    def test_living_holder_of_a_slot_is_not_dead(self, written: Roster, reader: RosterReader) -> None:
        written.note_topic(topic())
        written.note_participant(participant())
        assert not reader.proves_dead(topic().topic_id, 1, 9)

    def test_dead_holder_is_and_nobody_is_not(self, written: Roster, reader: RosterReader) -> None:
        written.note_topic(topic())
        written.note_participant(participant(start_time=1))
        assert reader.proves_dead(topic().topic_id, 1, 9)
        assert not reader.proves_dead(topic().topic_id, 1, 8)
        assert not reader.proves_dead(topic().topic_id, 2, 9)

    def test_holder_in_another_namespace_is_not(
        self, written: Roster, reader: RosterReader, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        written.note_topic(topic())
        written.note_participant(participant(start_time=1))
        monkeypatch.setattr(liveness, "namespaces", lambda: (1, 2))
        assert not reader.proves_dead(topic().topic_id, 1, 9)


class TestLifetime:
    """Each row is in a segment that lives as long as what it is about."""

    def test_topic_that_outlives_its_processes_is_in_the_lasting_segment_alone(
        self, written: Roster, reader: RosterReader
    ) -> None:
        written.note_topic(topic(1))
        written.note_topic(topic(2, attached=False))
        with lasting_of(reader) as lasting:
            assert (reader.topics(), lasting.topics()) == ([topic(1)], [topic(2, attached=False)])
            assert (segment.stat(reader.id).removed, segment.stat(lasting.id).removed) == (True, False)
        assert sorted(written.topics(), key=lambda row: row.topic_id) == [topic(1), topic(2, attached=False)]

    def test_holders_of_slots_are_found_by_the_reader_in_either_segment(
        self, written: Roster, reader: RosterReader
    ) -> None:
        for number, attached in ((1, True), (2, False)):
            written.note_topic(topic(number, attached=attached))
            row = replace(participant(number, start_time=1), topic_id=topic(number).topic_id)
            written.note_participant(row)
            assert reader.find_participant(row.topic_id, row.slot, row.incarnation) == row
            assert reader.proves_dead(row.topic_id, row.slot, row.incarnation)

    def test_lasting_segment_goes_when_nothing_is_left_to_note_and_comes_again(
        self, written: Roster, reader: RosterReader
    ) -> None:
        for _ in range(2):
            with written.intent() as intent:
                intent.note_topic(1, 2)
                written.note_topic(topic(attached=False))
                written.note_participant(participant())
                written.forget_topic(topic().topic_id)
            assert rosters() == [False, True]
            written.forget_participant(*participant().key)
            assert rosters() == [True]
            assert reader.lasting() is None

    def test_attached_topic_needs_the_lasting_segment_while_it_is_made_only(self, written: Roster) -> None:
        with written.intent() as intent:
            assert rosters() == [False, True]
            intent.note_topic(1, 2)
            written.note_topic(topic())
        assert rosters() == [True]

    def test_intent_of_an_earlier_daemon_holds_the_lasting_segment_until_it_is_settled(self) -> None:
        opened = open_roster("test", INSTANCE_ID)
        opened.note_topic(topic(attached=False))
        opened.intent().note_topic(1, 2)
        opened.close(remove=False)
        opened = open_roster("test", INSTANCE_ID)
        opened.forget_topic(topic().topic_id)
        assert [row.first_key for row in opened.intents()] == [1]
        opened.clear_intents()
        assert rosters() == [True]
        opened.close(remove=False)

    def test_transient_segment_survives_its_daemon_with_a_reader_and_not_without(self) -> None:
        opened = open_roster("test", INSTANCE_ID)
        opened.take_over()
        opened.note_topic(topic())
        with RosterReader(opened.id):
            opened.close(remove=False)
            again = open_roster("test", INSTANCE_ID)
            assert again.topics() == [topic()]
            assert again.take_over() == 2
        again.close(remove=False)
        assert rosters() == []

    def test_generation_and_publishers_numbers_survive_in_either_segment(self) -> None:
        opened = open_roster("test", INSTANCE_ID)
        opened.note_topic(topic(attached=False))
        opened.take_over()
        opened.note_participant(replace(participant(), kind="publisher", publisher=17))
        opened.close(remove=False)
        assert rosters() == [False]
        again = open_roster("test", INSTANCE_ID)
        assert again.take_over() == 2
        assert again.header.publishers_numbered == 17
        again.close(remove=True)

    def test_reader_does_not_follow_to_a_segment_of_another_instance(
        self, written: Roster, reader: RosterReader
    ) -> None:
        other = open_roster("other", bytes(16))
        written.note_topic(topic(attached=False))
        with segment.attach(written.id, readonly=False) as forged:
            for word in (other.id + 1, 2**31, 2**64 - 1):
                _core.store_word(forged.mapping, layout.HEADER.table["lasting"][0], word)
                assert reader.lasting() is None
        other.close(remove=True)


class TestFinding:
    @pytest.mark.parametrize("attached", [True, False])
    def test_roster_is_found_again_with_its_rows_and_a_higher_generation(self, attached: bool) -> None:
        first = open_roster("test", INSTANCE_ID)
        assert first.take_over() == 1
        first.note_topic(topic(attached=attached))
        with RosterReader(first.id):
            first.close(remove=False)
            second = open_roster("test", INSTANCE_ID)
        assert second.take_over() == 2
        assert second.topics() == [topic(attached=attached)]
        second.close(remove=True)

    def test_two_instances_have_two_rosters(self, written: Roster) -> None:
        other = open_roster("other", bytes(16))
        assert other.id != written.id
        other.close(remove=True)

    def test_strangers_segment_with_its_key_is_passed_over(self) -> None:
        with segment.create(4096, key=roster.candidate_keys(INSTANCE_ID)[0]) as stranger:
            opened = open_roster("test", INSTANCE_ID)
            opened.note_topic(topic(attached=False))
            opened.close(remove=False)
            again = open_roster("test", INSTANCE_ID)
            assert again.topics() == [topic(attached=False)]
            again.close(remove=True)
            segment.remove(stranger.id)

    def test_all_keys_taken_by_strangers_is_refused_with_what_to_do(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "ROSTER_CANDIDATES", 1)
        (key,) = roster.candidate_keys(INSTANCE_ID)
        with segment.create(4096, key=key) as stranger:
            with pytest.raises(ConfigError, match="other programs hold all 1 keys"):
                open_roster("test", INSTANCE_ID)
            segment.remove(stranger.id)
        opened = open_roster("test", INSTANCE_ID)
        with segment.create(4096, key=key) as stranger:
            with pytest.raises(ConfigError, match="other programs hold"):
                opened.intent()
            opened.note_topic(topic())
            segment.remove(stranger.id)
        opened.close(remove=True)

    def test_blank_segment_with_its_key_is_removed_and_one_of_a_stranger_is_not(self) -> None:
        first, second = roster.candidate_keys(INSTANCE_ID)[:2]
        with segment.create(layout.ROSTER_BYTES, key=first) as blank, segment.create(4096, key=second) as stranger:
            opened = open_roster("test", INSTANCE_ID)
            assert (segment.stat(blank.id).removed, segment.stat(stranger.id).removed) == (True, False)
            opened.close(remove=True)
            segment.remove(stranger.id)

    def test_lasting_segment_that_is_marked_removed_is_not_taken_for_a_transient_one(self) -> None:
        opened = open_roster("test", INSTANCE_ID)
        opened.note_topic(topic(attached=False))
        with RosterReader(opened.id) as reader:
            lasting = lasting_of(reader)
        with lasting:
            opened.close(remove=True)
            again = open_roster("test", INSTANCE_ID)
            assert again.id != lasting.id
            assert again.topics() == []
        again.close(remove=True)

    def test_second_daemon_is_refused_while_the_first_lives(self, written: Roster) -> None:
        for _ in range(2):
            before = sysv.list_segments()
            with pytest.raises(ConfigError, match=f"pid {os.getpid()}"):
                open_roster("test", INSTANCE_ID)
            assert [found.id for found in sysv.list_segments()] == [found.id for found in before]
            written.note_topic(topic(attached=False))

    @pytest.mark.parametrize("held", [True, False])
    def test_roster_of_a_killed_daemon_is_taken_over(self, held: bool) -> None:
        """The lasting segment alone, or with a transient one that somebody kept attached."""
        script = (
            "import sys; from shmd.roster import open_roster; from tests.test_roster import topic\n"
            "r = open_roster('test', bytes(range(16))); r.take_over(); r.note_topic(topic(2, attached=False))\n"
            "r.note_topic(topic(1)); print(r.id, flush=True); sys.stdin.read()"
        )
        directory = Path(__file__).parent.parent
        command = [sys.executable, "-c", script]
        with (
            subprocess.Popen(command, cwd=directory, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process,
            ExitStack() as stack,
        ):
            assert process.stdout is not None
            transient = int(process.stdout.readline())
            if held:
                stack.enter_context(RosterReader(transient))
            with pytest.raises(ConfigError, match=f"pid {process.pid}"):
                open_roster("test", INSTANCE_ID)
            process.kill()
            process.wait()
            opened = open_roster("test", INSTANCE_ID)
        assert (opened.id == transient) is held
        assert opened.take_over() == 2
        expected = [topic(1)] if held else []
        assert opened.topics() == [*expected, topic(2, attached=False)]
        opened.close(remove=True)

    def test_roster_of_another_major_version_is_refused_with_what_to_do(self, written: Roster) -> None:
        with segment.attach(written.id, readonly=False) as raw:
            raw.buf[8:12] = (layout.VERSION_MAJOR + 1 << 16).to_bytes(4, "little")
            with pytest.raises(VersionMismatch, match="shmd purge"):
                RosterReader(written.id)
            raw.buf[8:12] = layout.VERSION.to_bytes(4, "little")

    def test_daemon_refuses_a_roster_of_another_major_version_of_its_own_instance_only(self) -> None:
        opened, other = open_roster("test", INSTANCE_ID), open_roster("other", bytes(16))
        with RosterReader(opened.id), RosterReader(other.id), segment.attach(opened.id, readonly=False) as raw:
            raw.buf[8:12] = (layout.VERSION_MAJOR + 1 << 16).to_bytes(4, "little")
            for each in (opened, other):
                each.close(remove=True)
            again = open_roster("other", bytes(16))
            with pytest.raises(VersionMismatch):
                open_roster("test", INSTANCE_ID)
        again.close(remove=True)
        anew = open_roster("test", INSTANCE_ID)  # those who used it have ended
        assert anew.take_over() == 1
        anew.close(remove=True)

    def test_segment_that_is_none_is_refused(self) -> None:
        with segment.create(4096) as other:
            with pytest.raises(ConfigError, match="no roster"):
                RosterReader(other.id)
            segment.remove(other.id)


class TestLayout:
    @pytest.mark.parametrize(
        ("name", "fields"),
        [
            ("roster_header", layout.HEADER),
            ("roster_topic", layout.TOPIC),
            ("roster_participant", layout.PARTICIPANT),
            ("roster_intent", layout.INTENT),
            ("roster_segment", layout.SEGMENT),
        ],
    )
    def test_document_lists_every_field_and_none_overlap(self, name: str, fields: layout.Fields) -> None:
        assert documented_layout()[name] == fields.table
        end = 0
        for offset, size in fields.table.values():
            assert offset >= end
            assert offset % min(size, 8) == 0
            end = offset + size
        assert end <= fields.size_bytes

    def test_document_names_the_places_of_the_tables(self) -> None:
        text = (Path(__file__).parent.parent / "docs" / "memory-layout.md").read_text()
        for start in (layout.TOPICS_AT, layout.PARTICIPANTS_AT, layout.INTENTS_AT, layout.SEGMENTS_AT):
            assert re.search(rf"\| {start:#x} \|", text)
        assert f"{layout.ROSTER_BYTES} bytes" in text

    def test_c_client_knows_the_places_that_it_looks_at(self) -> None:
        csrc = Path(__file__).parent.parent / "csrc"
        source = "".join((csrc / f"bystander.{kind}").read_text() for kind in ("h", "c"))
        defined = {name: int(value, 0) for name, value in re.findall(r"^#define (\w+) (\w+?)u\b", source, re.M)}
        header = layout.HEADER.table
        assert defined == {
            "PID_NAMESPACE_AT": header["pid_namespace"][0],
            "TIME_NAMESPACE_AT": header["time_namespace"][0],
            "LASTING_AT": header["lasting"][0],
            "PARTICIPANTS_HIGH_AT": header["participants_high"][0],
            "PARTICIPANTS_AT": layout.PARTICIPANTS_AT,
            "PARTICIPANTS": limits.PARTICIPANTS_MAX,
            "ROW_BYTES": layout.PARTICIPANT.size_bytes,
            "SHMD_ROSTER_BYTES": layout.ROSTER_BYTES,
            "MAJOR": layout.VERSION_MAJOR,
            "VERSION_AT": header["version"][0],
            "INSTANCE_AT": header["instance_id"][0],
            "IDENTITY_BYTES": header["topic_rows"][0],
            "STATE_MASK": (1 << layout.STATE_BITS) - 1,
            "STATE_LIVE": layout.LIVE,
            "KIND_PUBLISHER": 1,
        }
