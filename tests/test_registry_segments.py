"""The registry's answers about raw segments; and, by a machine that does anything in any order, what always holds."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, precondition, rule

from shmd import policy, protocol, segment_policy
from shmd.errors import (
    InvalidName,
    InvalidOption,
    LimitExceeded,
    NoSuchTopic,
    PermissionDenied,
    SegmentExists,
    SegmentInvalid,
    SegmentLimit,
    SegmentMismatch,
    SegmentNotFound,
)
from shmd.protocol import (
    Bye,
    Cancel,
    Close,
    Declare,
    Done,
    ListSegments,
    OpenSegment,
    Refused,
    RemoveSegment,
    Resume,
    Resumed,
    SegmentGone,
    SegmentGranted,
    SegmentInfo,
    SegmentList,
    SegmentOptions,
    SegmentStatReply,
    SetSegment,
    StatSegment,
    TopicReply,
)
from shmd.registry import DestroySegment, ForgetParticipant, NoteParticipant, Quotas, Send
from tests.broker_rules import DAEMON, OVERHEAD_BYTES, World

ALICE, BOB = 1000, 1001


@pytest.fixture
def world() -> World:
    return World()


def opened(world: World, client: int, name: str = "s", size: int | None = 100, **options: Any) -> SegmentGranted:
    request = OpenSegment(id=world.new_id(), segment=name, options=SegmentOptions(size_bytes=size, **options))
    reply = world.ask(client, request)
    assert isinstance(reply, SegmentGranted), reply
    return reply


def refused(world: World, client: int, name: str = "s", **fields: Any) -> Exception:
    return world.refused(client, OpenSegment(id=world.new_id(), segment=name, **fields))


class TestOpening:
    def test_segment_is_noted_before_its_user_is_told(self, world: World) -> None:
        client = world.client()
        opened(world, client)
        kinds = [type(effect) for effect in world.log]
        assert kinds == [NoteParticipant, Send]

    def test_those_who_ask_meanwhile_wait_for_it(self, world: World) -> None:
        one, other = world.client(), world.client()
        first = OpenSegment(id=world.new_id(), segment="s", options=SegmentOptions(size_bytes=1), exclusive=True)
        second = OpenSegment(id=world.new_id(), segment="s", create=False)
        third = OpenSegment(id=world.new_id(), segment="s", exclusive=True)
        assert world.send(one, first) == []
        assert world.send(other, second) == []
        assert world.send(other, third) == []
        world.finish_creations()
        assert isinstance(world.replies[one][-1], SegmentGranted)
        granted, late = world.replies[other][-2:]
        assert isinstance(granted, SegmentGranted)
        assert isinstance(late, Refused)
        assert late.code == SegmentExists.code

    def test_failure_refuses_its_cause_and_lets_the_next_one_try(self, world: World) -> None:
        one, other = world.client(), world.client()
        for client in (one, other):
            world.send(client, OpenSegment(id=world.new_id(), segment="s", options=SegmentOptions(size_bytes=1)))
        world.segment_failed("s", SegmentLimit("no more"))
        answer = world.replies[one][-1]
        assert isinstance(answer, Refused)
        assert answer.code == SegmentLimit.code
        world.finish_creations()
        assert isinstance(world.replies[other][-1], SegmentGranted)

    def test_segment_may_be_changed_and_removed_by_those_who_waited_for_it(self, world: World) -> None:
        """All in one list of effects: when the change is performed the registry has forgotten the segment already."""
        client = world.client()
        world.send(client, OpenSegment(id=world.new_id(), segment="s", options=SegmentOptions(size_bytes=1)))
        world.send(client, SetSegment(id=world.new_id(), segment="s", mode=0o640))
        world.send(client, RemoveSegment(id=world.new_id(), segment="s"))
        world.finish_creations()
        assert [type(reply) for reply in world.replies[client][-4:]] == [SegmentGranted, Done, SegmentGone, Done]
        assert world.segments == {}

    def test_cancelled_creation_leaves_a_segment_without_users(self, world: World) -> None:
        client = world.client()
        request = OpenSegment(id=world.new_id(), segment="s", options=SegmentOptions(size_bytes=1))
        world.send(client, request)
        world.send(client, Cancel(id=world.new_id(), target=request.id))
        world.finish_creations()
        assert list(world.segments) == ["s"]
        assert not world.notes

    @pytest.mark.parametrize(
        ("fields", "error"),
        [
            ({"create": False}, SegmentNotFound),
            ({}, SegmentInvalid),
            ({"options": SegmentOptions(size_bytes=0)}, SegmentInvalid),
            ({"options": SegmentOptions(size_bytes=1, mode=0o620)}, InvalidOption),
            ({"options": SegmentOptions(size_bytes=1, adopt=True)}, InvalidOption),
            ({"options": SegmentOptions(size_bytes=1, lifetime="attached", key=7)}, InvalidOption),
            ({"name": "a..b"}, InvalidName),
        ],
    )
    def test_request_that_cannot_be_met_changes_nothing(
        self, world: World, fields: dict[str, Any], error: type[Exception]
    ) -> None:
        assert type(refused(world, world.client(), **fields)) is error
        assert not world.making

    def test_what_exists_is_given_as_it_is_or_not_at_all(self, world: World) -> None:
        client = world.client()
        first = opened(world, client, key=7, mode=0o640)
        assert opened(world, client, size=None).segment == first.segment
        assert opened(world, client, size=99, key=7).segment == first.segment
        assert type(refused(world, client, options=SegmentOptions(size_bytes=101))) is SegmentInvalid
        for options in (SegmentOptions(key=8), SegmentOptions(mode=0o600), SegmentOptions(lifetime="attached")):
            assert type(refused(world, client, options=options)) is SegmentMismatch

    def test_adopted_segment_is_not_charged(self) -> None:
        world = World(Quotas(total_bytes=100))
        client = world.client(ALICE)
        world.send(client, OpenSegment(id=1000, segment="a", options=SegmentOptions(key=7, adopt=True)))
        world.segment_made("a", msgspec.structs.replace(_foreign(), name="a"))
        assert isinstance(world.replies[client][-1], SegmentGranted)
        opened(world, client, "b", 100)
        assert type(refused(world, client, "c", options=SegmentOptions(size_bytes=1))) is LimitExceeded


def _foreign() -> SegmentInfo:
    return SegmentInfo(
        name="theirs",
        segment_id=b"f" * 16,
        id=99,
        key=7,
        size_bytes=10**6,
        mode=0o600,
        uid=ALICE,
        gid=ALICE,
        creator_uid=ALICE,
        creator_gid=ALICE,
        declared_by=ALICE,
        created_ns=1,
        adopted=True,
    )


class TestWhoMay:
    def test_group_uses_and_others_learn_nothing(self, world: World) -> None:
        alice, friend, bob = world.client(ALICE), world.client(BOB, groups=[ALICE]), world.client(BOB)
        opened(world, alice, key=0x777)
        opened(world, friend, size=None)
        for message in (
            OpenSegment(id=world.new_id(), segment="s"),
            OpenSegment(id=world.new_id(), segment="s", readonly=True),
            StatSegment(id=world.new_id(), segment="s"),
            SetSegment(id=world.new_id(), segment="s", mode=0o666),
            RemoveSegment(id=world.new_id(), segment="s"),
        ):
            error = world.refused(bob, message)
            assert type(error) is PermissionDenied
            assert "0x777" not in str(error)
        assert world.ask(bob, ListSegments(id=world.new_id())) == SegmentList(id=world._ids, segments=())

    def test_reader_may_read_only(self, world: World) -> None:
        opened(world, world.client(), mode=0o644)
        bob = world.client(BOB)
        assert type(refused(world, bob)) is PermissionDenied
        granted = world.ask(bob, OpenSegment(id=world.new_id(), segment="s", readonly=True))
        assert isinstance(granted, SegmentGranted)
        assert granted.readonly

    def test_mode_against_its_own_creator_is_refused(self, world: World) -> None:
        error = refused(world, world.client(ALICE), options=SegmentOptions(size_bytes=1, mode=0o600))
        assert type(error) is PermissionDenied

    def test_declarer_changes_it_and_everybody_knows(self, world: World) -> None:
        alice = world.client(ALICE)
        opened(world, alice)
        assert isinstance(
            world.ask(alice, SetSegment(id=world.new_id(), segment="s", uid=BOB, gid=BOB, mode=0o640)), Done
        )
        assert type(refused(world, alice)) is PermissionDenied
        granted = opened(world, world.client(BOB), size=None)
        assert (granted.segment.uid, granted.segment.gid, granted.segment.mode) == (BOB, BOB, 0o640)

    def test_adopted_segment_of_another_user_is_beyond_the_daemon(self, world: World) -> None:
        alice = world.client(ALICE)
        world.send(alice, OpenSegment(id=1000, segment="theirs", options=SegmentOptions(key=7, adopt=True)))
        world.segment_made("theirs", _foreign())
        for message in (
            SetSegment(id=world.new_id(), segment="theirs", mode=0o666),
            RemoveSegment(id=world.new_id(), segment="theirs"),
        ):
            error = world.refused(alice, message)
            assert type(error) is PermissionDenied
            assert "adopted" in str(error)


class TestEnds:
    def test_users_are_told_when_it_is_removed_by_whomever(self, world: World) -> None:
        one, other = world.client(), world.client()
        for remove in (
            lambda: world.ask(one, RemoveSegment(id=world.new_id(), segment="s")),
            lambda: world.segment_lost("s"),
        ):
            opened(world, one)
            info = opened(world, other).segment
            remove()
            assert SegmentGone(segment="s", segment_id=info.segment_id) in world.replies[one]
            assert SegmentGone(segment="s", segment_id=info.segment_id) in world.replies[other]
            assert not world.notes
            assert not world.segments

    def test_removal_of_another_than_was_meant_is_refused(self, world: World) -> None:
        client = world.client()
        opened(world, client)
        request = RemoveSegment(id=world.new_id(), segment="s", segment_id=b"x" * 16)
        assert type(world.refused(client, request)) is SegmentNotFound

    def test_attached_segment_goes_with_its_last_user(self, world: World) -> None:
        one, other = world.client(), world.client()
        first, second = opened(world, one, lifetime="attached"), opened(world, other, size=None)
        world.ask(one, Close(id=world.new_id(), handle=first.id))
        assert list(world.segments) == ["s"]
        world.leave(other)
        world.process_died(other)
        assert not world.segments
        assert [type(effect) for effect in world.log][:2] == [ForgetParticipant, DestroySegment]
        assert second.segment == first.segment

    def test_attached_segment_that_nobody_waited_for_goes_at_once(self, world: World) -> None:
        client = world.client()
        request = OpenSegment(id=world.new_id(), segment="s", options=SegmentOptions(size_bytes=1, lifetime="attached"))
        world.send(client, request)
        world.send(client, Cancel(id=world.new_id(), target=request.id))
        world.finish_creations()
        assert not world.segments

    def test_absent_user_keeps_its_handle_and_resumes(self, world: World) -> None:
        client = world.client()
        granted = opened(world, client, lifetime="attached")
        world.leave(client)
        world.resume_overdue(client)
        assert list(world.segments) == ["s"]
        assert world.resume(client).resumed
        assert isinstance(world.ask(client, Resume(id=world.new_id(), handle=granted.id)), Resumed)
        world.send(client, Bye(id=world.new_id()))
        assert not world.segments

    def test_users_are_known_to_the_next_daemon(self, world: World) -> None:
        client = world.client()
        granted = opened(world, client, lifetime="attached")
        world.restart()
        assert list(world.segments) == ["s"]
        assert world.resume(client).resumed
        assert isinstance(world.ask(client, Resume(id=world.new_id(), handle=granted.id)), Resumed)
        assert type(world.refused(client, Resume(id=world.new_id(), handle=4711))) is NoSuchTopic

    def test_attached_segment_without_users_goes_when_the_next_daemon_starts(self, world: World) -> None:
        client = world.client()
        opened(world, client, lifetime="attached")
        world.notes.clear()
        world.restart()
        assert not world.segments


class TestQuotas:
    def test_segments_are_counted_and_charged_with_the_topics(self) -> None:
        world = World(Quotas(segments=2, total_bytes=4096 + OVERHEAD_BYTES + 100))
        client = world.client()
        declare = Declare(id=world.new_id(), topic="t", options=protocol.TopicOptions(size_bytes=4096))
        assert isinstance(world.ask(client, declare), TopicReply)
        assert type(refused(world, client, options=SegmentOptions(size_bytes=101))) is LimitExceeded
        opened(world, client, "a", 99)
        opened(world, client, "b", 1)
        assert type(refused(world, client, "c", options=SegmentOptions(size_bytes=1))) is LimitExceeded
        error = world.refused(client, Declare(id=world.new_id(), topic="u"))
        assert type(error) is LimitExceeded

    def test_handles_and_participants_are_counted(self) -> None:
        world = World(Quotas(handles_per_client=2, participants=3))
        one, other = world.client(), world.client()
        for client in (one, one, other):
            opened(world, client)
        assert type(refused(world, one)) is LimitExceeded
        assert type(refused(world, other)) is LimitExceeded
        world.segment_lost("s")  # which gives all of them back
        for client in (one, one, other):
            opened(world, client)

    def test_list_is_paged_in_order_of_name(self, world: World) -> None:
        client = world.client()
        names = [f"s{number:03}" for number in range(100)]
        for name in reversed(names):
            opened(world, client, name, 1)
        found, after = [], ""
        while after is not None:
            page = world.ask(client, ListSegments(id=world.new_id(), pattern="*", after=after))
            assert isinstance(page, SegmentList)
            found += [info.name for info in page.segments]
            after = page.next  # type: ignore[assignment]
        assert found == names


NAMES = ["a", "b.x", "b.y"]
MACHINE_QUOTAS = Quotas(
    clients=5, segments=2, total_bytes=1000, handles_per_client=3, requests_per_client=3, participants=6
)


class SegmentMachine(RuleBasedStateMachine):
    """The model is a dictionary of handles; ``World`` checks each effect, and the invariants all of them together."""

    clients: ClassVar[Bundle[int]] = Bundle("clients")

    def __init__(self) -> None:
        super().__init__()
        self.world = World(MACHINE_QUOTAS)
        self.uids: dict[int, int] = {}
        self.handles: dict[tuple[int, int], bytes] = {}

    @rule(target=clients, uid=st.sampled_from([0, DAEMON.uid, ALICE, BOB]))
    def connect(self, uid: int) -> Any:
        if len(self.world.living) >= MACHINE_QUOTAS.clients:
            return multiple()
        number = self.world.client(uid)
        self.uids[number] = uid
        return number

    @rule(
        client=clients,
        name=st.sampled_from(NAMES),
        size=st.sampled_from([None, 1, 400, 600]),
        mode=st.sampled_from([None, 0o600, 0o640, 0o666]),
        lifetime=st.sampled_from([None, "os", "attached"]),
        flags=st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans()),
    )
    def open(
        self, client: int, name: str, size: int | None, mode: int | None, lifetime: Any, flags: tuple[bool, ...]
    ) -> None:
        create, exclusive, readonly, at_once = flags
        options = SegmentOptions(size_bytes=size, mode=mode, lifetime=lifetime)
        self._send(
            client,
            OpenSegment(
                id=self.world.new_id(),
                segment=name,
                options=options,
                create=create,
                exclusive=exclusive,
                readonly=readonly,
            ),
        )
        if at_once and name in self.world.making:
            self.world.segment_made(name)

    @rule(client=clients, data=st.data(), cancel=st.booleans())
    def close(self, client: int, data: st.DataObject, cancel: bool) -> None:
        mine = [handle for number, handle in self.handles if number == client]
        handle = data.draw(st.sampled_from([*mine, 1 << 40]))
        if client in self.world.replies:  # one that is away cannot give anything back
            self.handles.pop((client, handle), None)
        self._send(
            client,
            Cancel(id=self.world.new_id(), target=handle) if cancel else Close(id=self.world.new_id(), handle=handle),
        )

    @rule(client=clients, name=st.sampled_from(NAMES), mode=st.sampled_from([None, 0o600, 0o660, 0o111]))
    def change(self, client: int, name: str, mode: int | None) -> None:
        self._send(client, SetSegment(id=self.world.new_id(), segment=name, gid=BOB, mode=mode))

    @rule(client=clients, name=st.sampled_from(NAMES), kind=st.sampled_from([StatSegment, RemoveSegment]))
    def look_or_remove(self, client: int, name: str, kind: Any) -> None:
        self._send(client, kind(id=self.world.new_id(), segment=name))

    @precondition(lambda self: self.world.making)
    @rule(data=st.data(), succeeds=st.booleans())
    def creation_ends(self, data: st.DataObject, succeeds: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.world.making)))
        if succeeds:
            self.world.segment_made(name)
        else:
            self.world.segment_failed(name, SegmentLimit("no more"))

    @precondition(lambda self: self.world.segments)
    @rule(data=st.data())
    def segment_is_lost(self, data: st.DataObject) -> None:
        self.world.segment_lost(data.draw(st.sampled_from(sorted(self.world.segments))))

    @precondition(lambda self: self.world.living)
    @rule(data=st.data(), connected=st.booleans())
    def process_dies(self, data: st.DataObject, connected: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.world.living)))
        if not connected and number in self.world.replies:
            self.world.leave(number)
        if number in self.world.living:
            self.world.process_died(number)

    @precondition(lambda self: not self.world.making)
    @rule()
    def restart(self) -> None:
        self.world.restart()

    def _send(self, client: int, message: Any) -> None:
        if client in self.world.replies:
            self.world.send(client, message)

    @invariant()
    def model_and_notes_agree(self) -> None:
        """What was granted and not given back is noted, and nothing else is."""
        for client, replies in self.world.replies.items():
            for reply in replies:
                if isinstance(reply, SegmentGranted):
                    want = policy.READ if reply.readonly else policy.READ | policy.WRITE
                    who = policy.Credentials(self.uids[client], self.uids[client], 0)
                    assert policy.may(who, segment_policy.ownership(reply.segment), want)
                    if reply.segment.segment_id in {info.segment_id for info in self.world.segments.values()}:
                        self.handles[client, reply.id] = reply.segment.segment_id
            replies.clear()
        noted = {(note.client, note.handle): note.topic_id for note in self.world.notes.values()}
        assert noted.items() <= self.handles.items()
        self.handles = noted

    @invariant()
    def quotas_hold(self) -> None:
        infos, creations = self.world.segments.values(), self.world.making.values()
        sizes = [info.size_bytes for info in infos] + [creation.settings.size_bytes for creation in creations]
        assert len(sizes) <= MACHINE_QUOTAS.segments
        assert sum(sizes) <= MACHINE_QUOTAS.total_bytes
        assert len(self.world.notes) <= MACHINE_QUOTAS.participants
        for client in self.world.replies:
            assert sum(note.client == client for note in self.world.notes.values()) <= MACHINE_QUOTAS.handles_per_client

    @invariant()
    def attached_segments_have_users(self) -> None:
        used = {note.topic_id for note in self.world.notes.values()}
        for info in self.world.segments.values():
            assert info.lifetime == "os" or info.segment_id in used

    def teardown(self) -> None:
        for name in list(self.world.making):
            self.world.segment_made(name)
        for number in list(self.world.living):
            self.world.process_died(number)
        assert not self.world.notes
        root = self.world.client(0)
        for name in list(self.world.segments):
            assert isinstance(self.world.ask(root, RemoveSegment(id=self.world.new_id(), segment=name)), Done)
        assert not self.world.segments


TestSegmentMachine = SegmentMachine.TestCase


def test_stat_is_answered_with_what_the_kernel_says(world: World) -> None:
    client = world.client()
    opened(world, client)
    assert isinstance(world.ask(client, StatSegment(id=world.new_id(), segment="s")), SegmentStatReply)
