"""The registry's answers to each request and event."""

from __future__ import annotations

import pytest

from shmd import limits, protocol
from shmd.errors import (
    InvalidName,
    InvalidOption,
    LimitExceeded,
    NamespaceMismatch,
    NoSuchTopic,
    PermissionDenied,
    ProtocolError,
    RequestRefused,
    SegmentLimit,
    TopicBusy,
    TopicMismatch,
    TopicRemoved,
    VersionMismatch,
)
from shmd.protocol import (
    Bye,
    Cancel,
    Close,
    Declare,
    Done,
    Hello,
    Joined,
    ListTopics,
    OpenPublisher,
    OpenSubscriber,
    Peek,
    PublisherGranted,
    Refused,
    RemoveTopic,
    StatTopic,
    SubscriberGranted,
    TopicAdded,
    TopicGone,
    TopicList,
    TopicOptions,
    TopicReply,
    WaitSubscribers,
    Watch,
    Welcome,
)
from shmd.registry import (
    INCARNATION_MAX,
    AwaitResume,
    CreateTopic,
    DestroyTopic,
    ForgetParticipant,
    GrantSlot,
    HangUp,
    IgnoreDeath,
    NoteParticipant,
    Quotas,
    ReleaseSlot,
    ReportStat,
    RingBells,
    Send,
)
from shmd.registry.entities import Seat, Seats
from tests.broker_rules import DAEMON, IDENTITY, OVERHEAD_BYTES, World

ALICE, BOB = 1000, 1001
WAIT = TopicOptions(when_full="wait")
EXCLUSIVE = TopicOptions(exclusive=True)


@pytest.fixture
def world() -> World:
    return World()


def declare(world: World, client: int, topic: str = "t", options: TopicOptions | None = None) -> None:
    reply = world.ask(client, Declare(id=world.new_id(), topic=topic, options=options or TopicOptions()))
    assert isinstance(reply, TopicReply), reply


def publish(world: World, client: int, topic: str = "t", options: TopicOptions | None = None) -> int:
    """The handle of a new publisher."""
    request = OpenPublisher(id=world.new_id(), topic=topic, options=options or TopicOptions())
    assert isinstance(world.ask(client, request), PublisherGranted)
    return request.id


def subscribe(world: World, client: int, topic: str = "t", watch: int | None = None) -> SubscriberGranted:
    reply = world.ask(client, OpenSubscriber(id=world.new_id(), topic=topic, watch=watch))
    assert isinstance(reply, SubscriberGranted), reply
    return reply


def join(world: World, client: int, handle: int) -> None:
    assert isinstance(world.ask(client, Joined(id=world.new_id(), handle=handle)), Done)


def watch(world: World, client: int, pattern: str = ">", *, tethered: bool = True) -> int:
    request = Watch(id=world.new_id(), pattern=pattern, tethered=tethered)
    assert isinstance(world.ask(client, request), Done)
    return request.id


class TestHello:
    def test_client_is_welcomed_with_all_it_must_know(self, world: World) -> None:
        number = world.connect()
        reply = world.ask(number, Hello(id=5, major=1, minor=99, name="feed", ipc_namespace=4))
        assert reply == Welcome(
            id=5,
            major=1,
            minor=0,
            client=number,
            instance="test",
            instance_id=IDENTITY.instance_id,
            ipc_namespace=4,
            pid=DAEMON.pid,
            roster_id=IDENTITY.roster_id,
        )

    def test_client_is_told_while_others_are_on_their_way_back(self, world: World) -> None:
        one, other = world.client(), world.client()
        for client in (one, other):
            publish(world, client)
        world.restart()
        assert world.resume(one).settling
        newcomer = world.ask(world.connect(), Hello(id=1, major=1, minor=0))
        assert isinstance(newcomer, Welcome)
        assert newcomer.settling
        assert not world.resume(other).settling
        assert not world.ask(world.connect(), Hello(id=1, major=1, minor=0)).settling  # type: ignore[union-attr]

    def test_client_of_another_version_is_refused_and_hung_up_on(self, world: World) -> None:
        number = world.connect()
        effects = world.registry.request(number, Hello(id=1, major=2, minor=0))
        assert isinstance(effects[0], Send)
        assert isinstance(effects[0].message, Refused)
        assert effects[0].message.code == VersionMismatch.code
        assert isinstance(effects[-1], HangUp)
        assert world.registry.client_left(number) == []

    def test_client_of_another_ipc_namespace_is_refused_and_told_to_share_it(self, world: World) -> None:
        effects = world.registry.request(world.connect(), Hello(id=1, major=1, minor=0, ipc_namespace=5))
        assert isinstance(effects[0], Send)
        assert isinstance(effects[0].message, Refused)
        assert effects[0].message.code == NamespaceMismatch.code
        assert "--ipc=host" in (effects[0].message.hint or "")
        assert isinstance(effects[-1], HangUp)

    def test_client_that_cannot_tell_its_ipc_namespace_is_welcome(self, world: World) -> None:
        assert isinstance(world.ask(world.connect(), Hello(id=1, major=1, minor=0, ipc_namespace=0)), Welcome)

    def test_client_that_asks_before_hello_breaks_the_protocol(self, world: World) -> None:
        assert isinstance(world.refused(world.connect(), ListTopics(id=1)), ProtocolError)

    def test_client_that_says_hello_twice_breaks_the_protocol_and_stays_welcome(self, world: World) -> None:
        client = world.client()
        assert isinstance(world.refused(client, Hello(id=99, major=1, minor=0)), ProtocolError)
        assert isinstance(world.ask(client, ListTopics(id=100)), TopicList)

    def test_client_that_never_says_hello_is_hung_up_on_when_it_is_due(self, world: World) -> None:
        silent, polite = world.connect(), world.client()
        assert [type(effect) for effect in world.registry.hello_overdue(silent)] == [IgnoreDeath, HangUp]
        assert world.registry.hello_overdue(polite) == []
        assert world.registry.hello_overdue(silent) == []


class TestOffences:
    def test_client_is_hung_up_on_at_the_limit_of_protocol_errors_and_not_before(self, world: World) -> None:
        client = world.client()
        for _ in range(limits.PROTOCOL_ERRORS_MAX - 1):
            world.perform(world.registry.protocol_error(client, ProtocolError("garbage")))
        assert world.replies[client][-1] == Refused(id=0, code="protocol-error", message="garbage")
        assert isinstance(world.ask(client, ListTopics(id=world.new_id())), TopicList)
        effects = world.registry.protocol_error(client, ProtocolError("garbage"))
        assert [type(effect) for effect in effects] == [Send, IgnoreDeath, HangUp]
        assert world.registry.request(client, ListTopics(id=world.new_id())) == []

    def test_live_id_used_again_breaks_the_protocol_and_changes_nothing(self, world: World) -> None:
        client = world.client()
        handle = publish(world, client)
        assert isinstance(world.refused(client, OpenSubscriber(id=handle, topic="t")), ProtocolError)
        world.send(client, WaitSubscribers(id=500, topic="t", count=3))
        assert isinstance(world.refused(client, Peek(id=500, topic="t")), ProtocolError)
        assert not world.slots
        assert isinstance(world.ask(client, Close(id=world.new_id(), handle=handle)), Done)

    def test_id_of_a_closed_handle_may_be_used_again(self, world: World) -> None:
        client = world.client()
        handle = publish(world, client)
        world.ask(client, Close(id=world.new_id(), handle=handle))
        assert isinstance(world.ask(client, OpenSubscriber(id=handle, topic="t")), SubscriberGranted)

    @pytest.mark.parametrize("name", ["a..b", ".", "a b", "*", "x.>", "ä", "a/b", "\n"])
    def test_topic_that_cannot_be_named_so_is_refused_everywhere(self, world: World, name: str) -> None:
        client = world.client()
        for request in (Declare, OpenPublisher, OpenSubscriber, Peek, StatTopic, RemoveTopic):
            assert isinstance(world.refused(client, request(id=world.new_id(), topic=name)), InvalidName)
        assert not world.creating

    @pytest.mark.parametrize("pattern", ["a.>.b", "a..*", "**", "a*"])
    def test_pattern_that_cannot_be_is_refused(self, world: World, pattern: str) -> None:
        client = world.client()
        assert isinstance(world.refused(client, Watch(id=world.new_id(), pattern=pattern)), InvalidName)
        assert isinstance(world.refused(client, ListTopics(id=world.new_id(), pattern=pattern)), InvalidName)


class TestDeclare:
    def test_topic_is_created_once_and_declared_again_without_effect(self, world: World) -> None:
        client = world.client()
        first = world.ask(client, Declare(id=world.new_id(), topic="t", options=WAIT))
        second = world.ask(client, Declare(id=world.new_id(), topic="t"))
        assert isinstance(first, TopicReply)
        assert isinstance(second, TopicReply)
        assert first.topic == second.topic == world.topics["t"]

    def test_topic_that_exists_otherwise_is_a_mismatch_naming_both_values(self, world: World) -> None:
        client = world.client()
        declare(world, client, options=WAIT)
        for request in (Declare, OpenPublisher):
            options = TopicOptions(when_full="discard-old")
            error = world.refused(client, request(id=world.new_id(), topic="t", options=options))
            assert isinstance(error, TopicMismatch)
            assert "'wait'" in error.message
            assert "'discard-old'" in error.message

    def test_option_that_cannot_be_is_refused_and_nothing_created(self, world: World) -> None:
        client = world.client()
        error = world.refused(client, Declare(id=world.new_id(), topic="t", options=TopicOptions(mode=0o622)))
        assert isinstance(error, InvalidOption)
        assert not world.topics

    def test_topic_of_another_user_may_be_declared_by_those_who_may_read_it(self, world: World) -> None:
        declare(world, world.client(ALICE))
        assert isinstance(world.refused(world.client(BOB), Declare(id=world.new_id(), topic="t")), PermissionDenied)
        declare(world, world.client(BOB, groups=[ALICE]))

    def test_creator_who_could_not_publish_is_refused_before_anything_is_created(self, world: World) -> None:
        options = TopicOptions(mode=0o640)
        error = world.refused(world.client(ALICE), OpenPublisher(id=world.new_id(), topic="t", options=options))
        assert isinstance(error, PermissionDenied)
        assert not world.topics


class TestCreation:
    def test_requests_wait_for_the_topic_and_are_answered_in_order(self, world: World) -> None:
        first, second = world.client(), world.client()
        assert world.send(first, OpenPublisher(id=101, topic="t")) == []
        assert world.send(second, OpenSubscriber(id=102, topic="t")) == []
        assert world.send(first, Peek(id=103, topic="t")) == []
        world.topic_made("t")
        answered = [
            (effect.client, getattr(effect.message, "id", 0)) for effect in world.log if isinstance(effect, Send)
        ]
        assert answered == [(first, 101), (second, 102), (first, 103)]

    def test_other_topics_are_not_held_up(self, world: World) -> None:
        client = world.client()
        declare(world, client, "other")
        world.send(client, Declare(id=101, topic="slow"))
        assert [type(reply) for reply in world.send(client, Peek(id=102, topic="other"))] == [TopicReply]

    def test_failure_is_told_to_who_caused_it_and_the_next_in_line_tries_again(self, world: World) -> None:
        first, second, third = world.client(), world.client(), world.client()
        world.send(first, Declare(id=101, topic="t", options=TopicOptions(size_bytes=1 << 30)))
        world.send(second, OpenSubscriber(id=102, topic="t"))
        world.send(third, OpenPublisher(id=103, topic="t"))
        world.topic_failed("t", SegmentLimit("no more segments", "raise shmmni"))
        assert world.replies[first][-1] == Refused(
            id=101, code="segment-limit", message="no more segments", hint="raise shmmni"
        )
        refusal = world.replies[second][-1]
        assert isinstance(refusal, Refused)
        assert refusal.code == NoSuchTopic.code
        world.topic_made("t")
        assert isinstance(world.replies[third][-1], PublisherGranted)

    def test_creator_that_leaves_leaves_the_topic_to_those_who_wait(self, world: World) -> None:
        creator, other = world.client(), world.client()
        world.send(creator, OpenPublisher(id=101, topic="t"))
        world.send(other, OpenSubscriber(id=102, topic="t"))
        world.leave(creator)
        world.topic_made("t")
        assert isinstance(world.replies[other][-1], SubscriberGranted)

    def test_creator_that_left_hears_nothing_of_a_failure(self, world: World) -> None:
        creator = world.client()
        world.send(creator, Declare(id=101, topic="t"))
        world.leave(creator)
        world.topic_failed("t", RequestRefused("no"))
        assert world.log == []

    def test_removal_waits_for_the_creation_and_a_later_publisher_creates_anew(self, world: World) -> None:
        client = world.client()
        world.send(client, Declare(id=101, topic="t"))
        world.send(client, RemoveTopic(id=102, topic="t"))
        world.send(client, OpenPublisher(id=103, topic="t"))
        world.topic_made("t")
        assert [getattr(reply, "id", 0) for reply in world.replies[client]][-2:] == [101, 102]
        world.topic_made("t")
        assert isinstance(world.replies[client][-1], PublisherGranted)

    def test_cancelled_request_is_never_answered(self, world: World) -> None:
        client = world.client()
        world.send(client, OpenPublisher(id=101, topic="t", options=EXCLUSIVE))
        world.send(client, OpenSubscriber(id=102, topic="t"))
        assert world.send(client, Cancel(id=103, target=101)) == []
        assert world.send(client, Cancel(id=104, target=102)) == []
        heard = list(world.replies[client])
        world.topic_made("t")
        assert world.replies[client] == heard
        assert not world.slots
        publish(world, client)


class TestPublishers:
    def test_publishers_get_numbers_that_are_never_used_again(self, world: World) -> None:
        client, numbers = world.client(), []
        for _ in range(3):
            reply = world.ask(client, OpenPublisher(id=world.new_id(), topic="t"))
            assert isinstance(reply, PublisherGranted)
            numbers.append(reply.publisher)
            world.ask(client, Close(id=world.new_id(), handle=reply.id))
        assert len(set(numbers)) == 3

    def test_exclusive_topic_is_busy_and_its_holder_is_named(self, world: World) -> None:
        holder, other = world.client(name="feed"), world.client()
        handle = publish(world, holder, options=EXCLUSIVE)
        error = world.refused(other, OpenPublisher(id=world.new_id(), topic="t"))
        assert isinstance(error, TopicBusy)
        assert "'feed'" in error.message
        assert f"pid {9000 + holder}" in error.message
        world.ask(holder, Close(id=world.new_id(), handle=handle))
        publish(world, other)

    def test_exclusive_lease_outlives_its_connection_until_the_process_is_dead(self, world: World) -> None:
        holder, other = world.client(), world.client()
        publish(world, holder, options=EXCLUSIVE)
        publish(world, holder, "shared")
        world.leave(holder)
        world.resume_overdue(holder)
        assert isinstance(world.refused(other, OpenPublisher(id=world.new_id(), topic="t")), TopicBusy)
        world.process_died(holder)
        assert world.log[-3:] == [IgnoreDeath(holder), RingBells("t"), RingBells("shared")]
        publish(world, other)

    def test_exclusive_lease_outlives_a_hang_up(self, world: World) -> None:
        holder = world.client()
        publish(world, holder, options=EXCLUSIVE)
        for _ in range(limits.PROTOCOL_ERRORS_MAX):
            world.perform(world.registry.protocol_error(holder, ProtocolError("garbage")))
        assert holder not in world.replies
        error = world.refused(world.client(), OpenPublisher(id=world.new_id(), topic="t"))
        assert isinstance(error, TopicBusy)

    def test_exclusive_topic_can_be_removed_and_made_anew_while_a_lease_lingers(self, world: World) -> None:
        holder, other = world.client(), world.client()
        publish(world, holder, options=EXCLUSIVE)
        world.leave(holder)
        assert isinstance(world.ask(other, RemoveTopic(id=world.new_id(), topic="t")), Done)
        publish(world, other, options=EXCLUSIVE)
        assert world.registry.process_died(holder) == []
        assert isinstance(world.refused(world.client(), OpenPublisher(id=world.new_id(), topic="t")), TopicBusy)

    def test_death_matters_only_as_long_as_a_lease_does(self, world: World) -> None:
        holder, other = world.client(), world.client()
        publish(world, holder, "t", EXCLUSIVE)
        publish(world, holder, "u", EXCLUSIVE)
        world.leave(holder)
        world.ask(other, RemoveTopic(id=world.new_id(), topic="t"))
        assert IgnoreDeath(holder) not in world.log
        world.ask(other, RemoveTopic(id=world.new_id(), topic="u"))
        assert IgnoreDeath(holder) in world.log

    def test_shared_topic_takes_publishers_of_one_pid_namespace_only(self, world: World) -> None:
        publish(world, world.client(name="host", pid_namespace=1))
        stranger = world.client(pid_namespace=2)
        error = world.refused(stranger, OpenPublisher(id=world.new_id(), topic="t"))
        assert isinstance(error, NamespaceMismatch)
        assert "'host'" in error.message
        subscribe(world, stranger)

    def test_writing_needs_the_write_bit(self, world: World) -> None:
        declare(world, world.client(), options=TopicOptions(mode=0o604))
        reader = world.client(BOB)
        assert isinstance(world.refused(reader, OpenPublisher(id=world.new_id(), topic="t")), PermissionDenied)
        subscribe(world, reader)

    def test_departed_publisher_has_its_bells_rung(self, world: World) -> None:
        client = world.client()
        publish(world, client)
        publish(world, client)
        world.leave(client)
        assert world.log == [AwaitResume(client, 1), RingBells("t")]


class TestSubscribers:
    def test_subscriber_of_a_topic_that_does_not_exist_is_refused(self, world: World) -> None:
        assert isinstance(world.refused(world.client(), OpenSubscriber(id=world.new_id(), topic="t")), NoSuchTopic)

    def test_subscriber_gets_a_slot_of_its_own_that_holds_nobody_back_yet(self, world: World) -> None:
        client = world.client()
        declare(world, client, options=WAIT)
        grants = [subscribe(world, client) for _ in range(3)]
        assert [grant.slot for grant in grants] == [0, 1, 2]
        assert not any(grant.from_start for grant in grants)
        assert not any(tethered for _, tethered in world.slots.values())

    def test_slot_goes_to_another_under_a_new_incarnation(self, world: World) -> None:
        client = world.client()
        declare(world, client)
        first = subscribe(world, client)
        world.ask(client, Close(id=world.new_id(), handle=first.id))
        second = subscribe(world, client)
        assert second.slot == first.slot
        assert second.incarnation > first.incarnation

    def test_slot_is_retired_when_it_has_used_up_its_incarnations(self) -> None:
        seats = Seats(2)
        seats.give_back(Seat(0, INCARNATION_MAX))
        assert seats.take() == Seat(0, 1)
        assert seats.take() == Seat(1, 1)
        seats.give_back(Seat(0, INCARNATION_MAX))
        assert seats.take() is None
        seats.give_back(Seat(1, INCARNATION_MAX - 1))
        assert seats.take() == Seat(1, 2)

    def test_topic_without_free_slots_refuses_and_serves_again_when_one_is_free(self) -> None:
        world = World(Quotas(subscribers_per_topic=2))
        client = world.client()
        declare(world, client)
        first = subscribe(world, client)
        subscribe(world, client)
        error = world.refused(client, OpenSubscriber(id=world.new_id(), topic="t"))
        assert isinstance(error, LimitExceeded)
        assert "2" in error.message
        world.ask(client, Close(id=world.new_id(), handle=first.id))
        assert subscribe(world, client).slot == first.slot

    @pytest.mark.parametrize("how", ["bye", "death", "absent death"])
    def test_subscriber_that_is_gone_gives_its_slots_back_before_the_bells_ring_once(
        self, world: World, how: str
    ) -> None:
        client = world.client()
        declare(world, client)
        subscribe(world, client)
        subscribe(world, client)
        if how == "bye":
            world.send(client, Bye(id=world.new_id()))
        else:
            if how == "absent death":
                world.leave(client)
            world.process_died(client)
        kinds = [type(effect) for effect in world.log if not isinstance(effect, Send | HangUp)]
        assert kinds == [*[ReleaseSlot, ForgetParticipant] * 2, IgnoreDeath, RingBells]
        assert not world.slots
        assert not world.notes

    def test_closing_what_is_not_open_is_done_and_does_nothing(self, world: World) -> None:
        client, other = world.client(), world.client()
        declare(world, client)
        grant = subscribe(world, client)
        assert isinstance(world.ask(other, Close(id=world.new_id(), handle=grant.id)), Done)
        assert world.slots
        for _ in range(2):
            assert isinstance(world.ask(client, Close(id=world.new_id(), handle=grant.id)), Done)
        assert not world.slots

    def test_cancel_of_what_was_granted_closes_it(self, world: World) -> None:
        client = world.client()
        handle = publish(world, client, options=EXCLUSIVE)
        assert world.send(client, Cancel(id=world.new_id(), target=handle)) == []
        publish(world, client)

    def test_cancel_of_nothing_does_nothing(self, world: World) -> None:
        client = world.client()
        assert world.send(client, Cancel(id=world.new_id(), target=4711)) == []
        assert world.log == []


class TestWatches:
    def test_watch_hears_of_existing_topics_before_it_is_done(self, world: World) -> None:
        client = world.client()
        for name in ("b.x", "a.x", "c"):
            declare(world, client, name)
        heard = world.send(client, Watch(id=700, pattern="*.x"))
        assert heard == [
            TopicAdded(watch=700, topic="a.x", existing=True),
            TopicAdded(watch=700, topic="b.x", existing=True),
            Done(id=700),
        ]

    def test_watch_keeps_a_slot_from_the_first_record_before_anybody_knows_the_topic(self, world: World) -> None:
        watcher, creator = world.client(), world.client()
        handle = watch(world, watcher, "t")
        world.send(creator, OpenPublisher(id=101, topic="t", options=WAIT))
        world.topic_made("t")
        kinds = [type(effect) for effect in world.log]
        assert kinds == [GrantSlot, NoteParticipant, Send, NoteParticipant, Send]
        assert world.log[0] == GrantSlot("t", 0, 1, live=True, tethered=True)
        assert world.log[2] == Send(watcher, TopicAdded(watch=handle, topic="t", existing=False))
        grant = subscribe(world, watcher, watch=handle)
        assert (grant.slot, grant.incarnation, grant.from_start) == (0, 1, True)

    @pytest.mark.parametrize(("options", "tethered"), [(WAIT, False), (TopicOptions(when_full="discard-old"), True)])
    def test_kept_slot_holds_nobody_back_unless_both_want_it(
        self, world: World, options: TopicOptions, tethered: bool
    ) -> None:
        client = world.client()
        watch(world, client, tethered=tethered)
        declare(world, client, options=options)
        assert world.slots == {("t", 0): (1, False)}

    def test_kept_slot_is_given_out_once(self, world: World) -> None:
        client = world.client()
        handle = watch(world, client)
        declare(world, client)
        assert subscribe(world, client, watch=handle).from_start
        assert not subscribe(world, client, watch=handle).from_start

    def test_kept_slot_is_for_the_watching_client_only(self, world: World) -> None:
        client, thief = world.client(), world.client()
        handle = watch(world, client)
        declare(world, client)
        assert not subscribe(world, thief, watch=handle).from_start
        assert subscribe(world, client, watch=handle).from_start

    def test_closed_watch_gives_kept_slots_back(self, world: World) -> None:
        client = world.client()
        handle = watch(world, client)
        declare(world, client, "t", WAIT)
        declare(world, client, "u", WAIT)
        world.ask(client, Close(id=world.new_id(), handle=handle))
        assert not world.slots
        assert RingBells("t") in world.log
        assert RingBells("u") in world.log

    def test_watch_hears_nothing_of_topics_it_may_not_read(self, world: World) -> None:
        alice, bob = world.client(ALICE), world.client(BOB)
        watch(world, bob)
        declare(world, alice)
        assert world.send(bob, Watch(id=700, pattern=">")) == [Done(id=700)]
        assert isinstance(world.ask(alice, RemoveTopic(id=world.new_id(), topic="t")), Done)
        assert not any(isinstance(reply, TopicAdded | TopicGone) for reply in world.replies[bob])

    def test_watch_beyond_the_slots_hears_of_the_topic_without_one(self) -> None:
        world = World(Quotas(subscribers_per_topic=1))
        first, second = world.client(), world.client()
        watch(world, first)
        handle = watch(world, second)
        declare(world, first)
        assert world.replies[second][-1] == TopicAdded(watch=handle, topic="t", existing=False)
        assert len(world.slots) == 1


class TestLooking:
    def test_list_is_paged_in_order_of_name(self, world: World) -> None:
        client = world.client()
        expected = sorted(f"t{number}" for number in range(limits.PAGE_ENTRIES_MAX * 2))
        for name in reversed(expected):
            declare(world, client, name)
        found: list[str] = []
        after: str | None = ""
        while after is not None:
            page = world.ask(client, ListTopics(id=world.new_id(), after=after))
            assert isinstance(page, TopicList)
            assert 0 < len(page.topics) <= limits.PAGE_ENTRIES_MAX
            found += [info.name for info in page.topics]
            after = page.next
        assert found == expected

    def test_list_shows_what_matches_and_may_be_read(self, world: World) -> None:
        alice, bob = world.client(ALICE), world.client(BOB)
        declare(world, alice, "a.private")
        declare(world, alice, "a.public", TopicOptions(mode=0o664))
        declare(world, alice, "b", TopicOptions(mode=0o664))
        page = world.ask(bob, ListTopics(id=world.new_id(), pattern="a.*"))
        assert isinstance(page, TopicList)
        assert [info.name for info in page.topics] == ["a.public"]

    def test_longest_list_page_and_fullest_grant_fit_a_message(self, world: World) -> None:
        client = world.client()
        for number in range(limits.PAGE_ENTRIES_MAX):
            declare(world, client, f"{number:03}".ljust(limits.TOPIC_NAME_BYTES_MAX, "x"))
        page = world.ask(client, ListTopics(id=2**53))
        assert len(protocol.encode(page)) <= limits.MESSAGE_BYTES_MAX

    def test_stat_names_all_participants_and_kept_slots(self, world: World) -> None:
        client, watcher = world.client(name="one"), world.client(name="two")
        watch(world, watcher)
        publish(world, client)
        subscribe(world, client)
        world.send(client, StatTopic(id=101, topic="t"))
        (report,) = world.log
        assert isinstance(report, ReportStat)
        assert (report.client, report.request_id, report.topic) == (client, 101, "t")
        assert [publisher.name for publisher in report.publishers] == ["one"]
        assert sorted((holder.name, holder.slot) for holder in report.subscribers) == [("one", 1), ("two", 0)]

    @pytest.mark.parametrize("request_type", [StatTopic, Peek, OpenSubscriber])
    def test_looking_needs_the_topic_and_the_read_bit(self, world: World, request_type: type[Peek]) -> None:
        assert isinstance(world.refused(world.client(BOB), request_type(id=world.new_id(), topic="t")), NoSuchTopic)
        declare(world, world.client(ALICE))
        error = world.refused(world.client(BOB), request_type(id=world.new_id(), topic="t"))
        assert isinstance(error, PermissionDenied)
        assert "0660" in error.message


class TestRemoval:
    def test_everybody_concerned_is_told_once(self, world: World) -> None:
        remover, publisher, subscriber, watcher, peeker, stranger = (world.client() for _ in range(6))
        watch(world, watcher, "t")
        watch(world, watcher, ">")
        publish(world, publisher)
        subscribe(world, subscriber)
        subscribe(world, subscriber)
        world.ask(peeker, Peek(id=world.new_id(), topic="t"))
        gone = TopicGone(topic="t", topic_id=world.topics["t"].topic_id)
        world.send(remover, RemoveTopic(id=101, topic="t"))
        assert DestroyTopic("t") in world.log
        told = [effect.client for effect in world.log if isinstance(effect, Send) and effect.message == gone]
        assert told == [publisher, subscriber, watcher, peeker]
        assert world.replies[remover][-1] == Done(id=101)
        assert stranger not in told

    def test_participants_of_a_removed_topic_hold_nothing_any_more(self, world: World) -> None:
        client = world.client()
        handle = watch(world, client)
        publish(world, client)
        subscribe(world, client)
        world.ask(client, RemoveTopic(id=world.new_id(), topic="t"))
        declare(world, client)
        assert subscribe(world, client, watch=handle).from_start
        world.send(client, Bye(id=world.new_id()))
        assert not world.slots

    def test_peeker_is_told_of_one_removal_not_of_all(self, world: World) -> None:
        client, peeker = world.client(), world.client()
        declare(world, client)
        world.ask(peeker, Peek(id=world.new_id(), topic="t"))
        for _ in range(2):
            world.ask(client, RemoveTopic(id=world.new_id(), topic="t"))
            declare(world, client)
        assert sum(isinstance(reply, TopicGone) for reply in world.replies[peeker]) == 1

    def test_waiting_requests_of_a_removed_topic_are_refused(self, world: World) -> None:
        client, waiter = world.client(), world.client()
        declare(world, client)
        world.send(waiter, WaitSubscribers(id=101, topic="t", count=1))
        world.ask(client, RemoveTopic(id=world.new_id(), topic="t"))
        refusal = world.replies[waiter][-1]
        assert isinstance(refusal, Refused)
        assert (refusal.id, refusal.code) == (101, TopicRemoved.code)
        declare(world, waiter)
        subscribe(world, waiter)

    @pytest.mark.parametrize(("uid", "allowed"), [(0, True), (DAEMON.uid, True), (ALICE, True), (BOB, False)])
    def test_topic_is_removed_by_those_who_may(self, world: World, uid: int, allowed: bool) -> None:
        declare(world, world.client(ALICE), options=TopicOptions(mode=0o666))
        reply = world.ask(world.client(uid), RemoveTopic(id=world.new_id(), topic="t"))
        assert isinstance(reply, Done if allowed else Refused)
        assert ("t" in world.topics) is not allowed

    def test_topic_that_does_not_exist_cannot_be_removed(self, world: World) -> None:
        assert isinstance(world.refused(world.client(), RemoveTopic(id=world.new_id(), topic="t")), NoSuchTopic)


class TestWaiting:
    def test_wait_is_answered_when_enough_have_joined(self, world: World) -> None:
        publisher, subscriber = world.client(), world.client()
        declare(world, publisher)
        assert world.send(publisher, WaitSubscribers(id=101, topic="t", count=2)) == []
        grants = [subscribe(world, subscriber), subscribe(world, subscriber)]
        join(world, subscriber, grants[0].id)
        join(world, subscriber, grants[0].id)
        assert Done(id=101) not in world.replies[publisher]
        join(world, subscriber, grants[1].id)
        assert Done(id=101) in world.replies[publisher]

    def test_wait_for_what_is_already_there_is_answered_at_once(self, world: World) -> None:
        client = world.client()
        declare(world, client)
        join(world, client, subscribe(world, client).id)
        for count in (0, 1):
            assert isinstance(world.ask(client, WaitSubscribers(id=world.new_id(), topic="t", count=count)), Done)

    def test_subscriber_that_closed_does_not_count_any_more(self, world: World) -> None:
        client = world.client()
        declare(world, client)
        grant = subscribe(world, client)
        join(world, client, grant.id)
        world.ask(client, Close(id=world.new_id(), handle=grant.id))
        assert world.send(client, WaitSubscribers(id=101, topic="t", count=1)) == []

    def test_joining_with_what_is_no_subscriber_of_ones_own_is_done_and_counts_nothing(self, world: World) -> None:
        client, other = world.client(), world.client()
        publisher = publish(world, client)
        grant = subscribe(world, client)
        join(world, client, publisher)
        join(world, client, 4711)
        join(world, other, grant.id)
        assert world.send(client, WaitSubscribers(id=5001, topic="t", count=1)) == []

    def test_kept_slots_do_not_count_until_they_are_opened(self, world: World) -> None:
        client = world.client()
        handle = watch(world, client)
        declare(world, client)
        assert world.send(client, WaitSubscribers(id=101, topic="t", count=1)) == []
        subscribe(world, client, watch=handle)
        assert Done(id=101) in world.replies[client]

    @pytest.mark.parametrize("how", ["cancel", "leave"])
    def test_wait_that_was_given_up_is_never_answered(self, world: World, how: str) -> None:
        waiter, client = world.client(), world.client()
        declare(world, client)
        world.send(waiter, WaitSubscribers(id=101, topic="t", count=1))
        if how == "cancel":
            world.send(waiter, Cancel(id=102, target=101))
        else:
            world.leave(waiter)
        join(world, client, subscribe(world, client).id)
        assert Done(id=101) not in world.replies.get(waiter, [])


class TestQuotas:
    def test_clients_beyond_the_limit_are_turned_away_with_the_limit(self) -> None:
        world = World(Quotas(clients=2))
        first, second = world.client(), world.client()
        effects = world.registry.client_connected(99, DAEMON)
        assert isinstance(effects[0], Send)
        assert isinstance(effects[0].message, Refused)
        assert effects[0].message.code == LimitExceeded.code
        assert "2" in effects[0].message.message
        assert isinstance(effects[-1], HangUp)
        world.leave(first)
        world.client()
        assert second in world.replies

    def test_one_user_cannot_take_all_connections(self) -> None:
        world = World(Quotas(clients=3, clients_per_uid=2))
        mine = [world.client(ALICE), world.client(ALICE)]
        assert world.connect(ALICE) not in world.replies
        world.client(BOB)
        world.leave(mine[0])
        world.client(ALICE)

    def test_topics_beyond_the_limit_are_refused_also_while_others_are_made(self) -> None:
        world = World(Quotas(topics=2))
        client = world.client()
        declare(world, client, "a")
        world.send(client, Declare(id=world.new_id(), topic="b"))
        (refusal,) = world.send(client, Declare(id=world.new_id(), topic="c"))
        assert isinstance(refusal, Refused)
        assert refusal.code == LimitExceeded.code
        world.finish_creations()
        world.ask(client, RemoveTopic(id=world.new_id(), topic="a"))
        declare(world, client, "c")

    def test_bytes_count_overhead_and_topics_in_the_making(self) -> None:
        size, charge = 65536, 65536 + OVERHEAD_BYTES
        world = World(Quotas(total_bytes=2 * charge))
        client, options = world.client(), TopicOptions(size_bytes=size)
        world.send(client, Declare(id=world.new_id(), topic="a", options=options))
        world.send(client, Declare(id=world.new_id(), topic="b", options=options))
        world.finish_creations()
        error = world.refused(client, Declare(id=world.new_id(), topic="c", options=TopicOptions(size_bytes=4096)))
        assert isinstance(error, LimitExceeded)
        assert str(2 * charge) in error.message
        assert "--max-bytes" in (error.hint or "")
        world.ask(client, RemoveTopic(id=world.new_id(), topic="a"))
        declare(world, client, "c", options)

    def test_failed_creation_gives_its_bytes_back(self) -> None:
        world = World(Quotas(total_bytes=4096 + OVERHEAD_BYTES))
        client, options = world.client(), TopicOptions(size_bytes=4096)
        world.send(client, Declare(id=world.new_id(), topic="a", options=options))
        world.topic_failed("a", RequestRefused("no"))
        declare(world, client, "b", options)

    def test_handles_of_one_client_are_limited(self) -> None:
        world = World(Quotas(handles_per_client=3))
        client = world.client()
        handle = publish(world, client)
        subscribe(world, client)
        watch(world, client)
        for request in (
            OpenPublisher(id=101, topic="new"),
            OpenSubscriber(id=102, topic="t"),
            Watch(id=103, pattern="a"),
        ):
            assert isinstance(world.refused(client, request), LimitExceeded)
        assert "new" not in world.topics
        world.ask(client, Close(id=world.new_id(), handle=handle))
        publish(world, client)

    def test_requests_under_way_are_limited_but_can_be_cancelled(self) -> None:
        world = World(Quotas(requests_per_client=2))
        client = world.client()
        declare(world, client)
        for request_id in (101, 102):
            world.send(client, WaitSubscribers(id=request_id, topic="t", count=1))
        assert isinstance(world.refused(client, Peek(id=103, topic="t")), LimitExceeded)
        world.send(client, Cancel(id=104, target=101))
        assert isinstance(world.ask(client, Peek(id=105, topic="t")), TopicReply)

    def test_who_is_at_the_limit_can_give_back_and_say_bye(self) -> None:
        world = World(Quotas(requests_per_client=2))
        client = world.client()
        handle = publish(world, client)
        for request_id in (101, 102):
            world.send(client, WaitSubscribers(id=request_id, topic="t", count=1))
        assert isinstance(world.ask(client, Close(id=103, handle=handle)), Done)
        assert not world.notes
        world.send(client, Bye(id=104))
        assert client not in world.replies
        assert client not in world.living

    def test_create_topic_says_all_that_the_daemon_needs(self, world: World) -> None:
        client = world.client(ALICE)
        world.send(client, Declare(id=101, topic="t", options=TopicOptions(size_bytes=5000, when_full="wait")))
        (effect,) = world.log
        assert isinstance(effect, CreateTopic)
        assert (effect.topic, effect.settings.size_bytes, effect.settings.when_full) == ("t", 8192, "wait")
        assert (effect.settings.uid, effect.settings.gid, effect.settings.mode) == (DAEMON.uid, ALICE, 0o660)
        assert effect.settings.hostile
        world.finish_creations()
