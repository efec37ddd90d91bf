"""The roster: rows that are there or not, found again by key and creator, and read by anybody while it changes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shmd import _core, liveness, roster, segment
from shmd import roster_layout as layout
from shmd.errors import ConfigError, LimitExceeded, VersionMismatch
from shmd.roster import RosterReader, open_roster
from shmd.roster_layout import LIVE, QUARANTINED, REMOVING, ParticipantRow, TopicRow
from tests.test_layout import documented_layout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shmd.roster import Roster

pytestmark = pytest.mark.may_block
INSTANCE_ID = bytes(range(16))


def topic(number: int = 1, name: str = "t") -> TopicRow:
    return TopicRow(
        log_id=1,
        log_key=2,
        ctl_id=3,
        ctl_key=4,
        size_bytes=4096,
        wait=True,
        exclusive=False,
        attached=True,
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
        intent = written.intent()
        intent.note(10, 11)
        intent.note(12, 13)
        assert [(row.log_key, row.ctl_key, row.pid) for row in reader.intents()] == [(12, 13, os.getpid())]
        intent.clear()
        assert reader.intents() == []

    def test_topics_beyond_the_rows_are_refused(self, written: Roster, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(written, "_free_topics", [0])
        written.note_topic(topic())
        with pytest.raises(LimitExceeded):
            written.note_topic(topic(2))

    def test_publisher_numbers_are_remembered(self, written: Roster) -> None:
        row = participant()
        fields = {name: getattr(row, name) for name in row.__slots__}
        written.note_participant(ParticipantRow(**fields | {"kind": "publisher", "publisher": 17}))
        assert written.header.publishers_numbered == 17

    @pytest.mark.parametrize("word", [0, LIVE, 0xFF])
    def test_bytes_that_no_daemon_wrote_raise_nothing(self, written: Roster, reader: RosterReader, word: int) -> None:
        with segment.attach(written.id, readonly=False) as forged:
            for start in (layout.TOPICS_AT, layout.PARTICIPANTS_AT, layout.INTENTS_AT):
                forged.buf[start + 8 : start + 64] = os.urandom(56)
                _core.store_word(forged.mapping, start, word)
        reader.topics(), reader.participants(), reader.intents()


class TestProof:
    def test_living_holder_of_a_slot_is_not_dead(self, written: Roster, reader: RosterReader) -> None:
        written.note_participant(participant())
        assert not reader.proves_dead(topic().topic_id, 1, 9)

    def test_dead_holder_is_and_nobody_is_not(self, written: Roster, reader: RosterReader) -> None:
        written.note_participant(participant(start_time=1))
        assert reader.proves_dead(topic().topic_id, 1, 9)
        assert not reader.proves_dead(topic().topic_id, 1, 8)
        assert not reader.proves_dead(topic().topic_id, 2, 9)

    def test_holder_in_another_namespace_is_not(
        self, written: Roster, reader: RosterReader, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        written.note_participant(participant(start_time=1))
        monkeypatch.setattr(liveness, "namespaces", lambda: (1, 2))
        assert not reader.proves_dead(topic().topic_id, 1, 9)


class TestFinding:
    def test_roster_is_found_again_with_its_rows_and_a_higher_generation(self) -> None:
        first = open_roster("test", INSTANCE_ID)
        assert first.take_over() == 1
        first.note_topic(topic())
        first.close(remove=False)
        second = open_roster("test", INSTANCE_ID)
        assert second.take_over() == 2
        assert second.topics() == [topic()]
        second.close(remove=True)

    def test_two_instances_have_two_rosters(self, written: Roster) -> None:
        other = open_roster("other", bytes(16))
        assert other.id != written.id
        other.close(remove=True)

    def test_strangers_segment_with_its_key_is_passed_over(self) -> None:
        with segment.create(4096, key=roster.candidate_keys(INSTANCE_ID)[0]) as stranger:
            opened = open_roster("test", INSTANCE_ID)
            assert opened.id != stranger.id
            opened.note_topic(topic())
            opened.close(remove=False)
            again = open_roster("test", INSTANCE_ID)
            assert again.id == opened.id
            again.close(remove=True)
            segment.remove(stranger.id)

    def test_second_daemon_is_refused_while_the_first_lives(self, written: Roster) -> None:
        with pytest.raises(ConfigError, match=f"pid {os.getpid()}"):
            open_roster("test", INSTANCE_ID)

    def test_roster_of_a_killed_daemon_is_taken_over(self) -> None:
        script = (
            "import os, signal; from shmd.roster import open_roster; r = open_roster('test', bytes(range(16)))\n"
            "r.take_over(); os.kill(os.getpid(), signal.SIGKILL)"
        )
        environment = os.environ | {"PYTHONPATH": str(Path(roster.__file__).parent.parent)}
        subprocess.run([sys.executable, "-c", script], env=environment, check=False)
        opened = open_roster("test", INSTANCE_ID)
        assert opened.take_over() == 2
        opened.close(remove=True)

    def test_roster_of_another_major_version_is_refused_with_what_to_do(self, written: Roster) -> None:
        with segment.attach(written.id, readonly=False) as raw:
            raw.buf[8:12] = (2 << 16).to_bytes(4, "little")
            with pytest.raises(VersionMismatch, match="shmd purge"):
                RosterReader(written.id)
            raw.buf[8:12] = layout.VERSION.to_bytes(4, "little")

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
        for start in (layout.TOPICS_AT, layout.PARTICIPANTS_AT, layout.INTENTS_AT):
            assert re.search(rf"\| {start:#x} \|", text)
        assert f"{layout.ROSTER_BYTES} bytes" in text
