"""Clients that are absent, resume or die; daemons that begin with a past; topics that end by themselves."""

from __future__ import annotations

import pytest

from shmd import limits, protocol
from shmd.errors import LimitExceeded, NoSuchTopic, PermissionDenied, ProtocolError
from shmd.protocol import (
    Bye,
    Close,
    Declare,
    Done,
    ListTopics,
    OpenPublisher,
    OpenSubscriber,
    PublisherGranted,
    PublishersGone,
    RemoveTopic,
    ReportStall,
    Resume,
    Resumed,
    Stop,
    SubscriberGranted,
    TopicGone,
    TopicOptions,
    Untethered,
    WaitSubscribers,
    Watch,
    WatchPublishers,
)
from shmd.registry import DestroyTopic, Quotas, RingBells, Untether
from tests.broker_rules import DAEMON, World

ALICE = 1000
WAIT = TopicOptions(when_full="wait", mode=0o666)
ATTACHED = TopicOptions(lifetime="attached")
FLEETING = TopicOptions(idle_ttl_s=5.0)


@pytest.fixture
def world() -> World:
    return World()


def subscribe(world: World, client: int, watch: int | None = None, options: TopicOptions = WAIT) -> SubscriberGranted:
    world.ask(client, Declare(id=world.new_id(), topic="t", options=options))
    reply = world.ask(client, OpenSubscriber(id=world.new_id(), topic="t", watch=watch))
    assert isinstance(reply, SubscriberGranted), reply
    return reply


def publish(world: World, client: int, options: TopicOptions = WAIT) -> PublisherGranted:
    reply = world.ask(client, OpenPublisher(id=world.new_id(), topic="t", options=options))
    assert isinstance(reply, PublisherGranted), reply
    return reply


class TestAbsence:
    def test_absent_client_keeps_its_slots_and_is_untethered_when_it_does_not_resume(self, world: World) -> None:
        client = world.client()
        grant = subscribe(world, client)
        world.leave(client)
        assert world.slots
        world.resume_overdue(client)
        assert world.log == [Untether("t", grant.slot, grant.incarnation), RingBells("t")]
        assert world.slots

    def test_client_that_resumed_in_time_keeps_its_tethers(self, world: World) -> None:
        client = world.client()
        subscribe(world, client)
        world.leave(client)
        assert world.resume(client).resumed
        world.resume_overdue(client)
        assert world.log == []

    def test_time_to_resume_begins_anew_with_every_absence(self, world: World) -> None:
        client = world.client()
        subscribe(world, client)
        world.leave(client)
        first = world.absences[client]
        world.resume(client)
        world.leave(client)
        assert world.registry.resume_overdue(client, first) == []

    def test_absent_client_that_holds_nothing_is_forgotten(self, world: World) -> None:
        client = world.client()
        world.leave(client)
        assert client not in world.living
        assert not world.resume(client).resumed

    def test_absent_client_waits_for_nothing_any_more(self, world: World) -> None:
        client, other = world.client(), world.client()
        grant = subscribe(world, client)
        world.send(client, WaitSubscribers(id=900, topic="t", count=2))
        world.leave(client)
        seat = subscribe(world, other)
        world.ask(other, protocol.Joined(id=world.new_id(), handle=seat.id))
        world.resume(client)
        assert isinstance(world.ask(client, Resume(id=900, handle=grant.id)), Resumed)

    def test_absent_client_counts_against_the_limits_until_its_process_is_dead(self) -> None:
        world = World(Quotas(clients=1))
        client = world.client()
        subscribe(world, client)
        world.leave(client)
        assert world.connect() not in world.replies
        world.process_died(client)
        assert isinstance(world.client(), int)

    def test_topic_removed_meanwhile_is_gone_for_the_absent(self, world: World) -> None:
        client, other = world.client(), world.client()
        grant = subscribe(world, client)
        publish(world, client, TopicOptions())
        world.leave(client)
        world.ask(other, RemoveTopic(id=world.new_id(), topic="t"))
        assert client not in world.living
        assert not world.notes
        assert isinstance(world.refused(other, Resume(id=world.new_id(), handle=grant.id)), NoSuchTopic)


class TestResume:
    def test_client_gets_its_number_and_the_bells_of_its_handles(self, world: World) -> None:
        client = world.client()
        handles = [subscribe(world, client).id, publish(world, client).id]
        world.leave(client)
        assert world.resume(client).client == client
        for handle in handles:
            assert isinstance(world.ask(client, Resume(id=world.new_id(), handle=handle)), Resumed)

    def test_client_thought_connected_is_cut_off_by_its_own_return(self, world: World) -> None:
        client = world.client()
        grant = subscribe(world, client)
        assert world.resume(client).resumed
        assert isinstance(world.ask(client, Resume(id=world.new_id(), handle=grant.id)), Resumed)

    @pytest.mark.parametrize("stranger", [{"pid": 4}, {"uid": ALICE}, {"pid": 0}])
    def test_number_of_another_process_is_of_no_use(self, world: World, stranger: dict[str, int]) -> None:
        client = world.client()
        subscribe(world, client)
        world.leave(client)
        assert not world.resume(client, **stranger).resumed
        assert world.slots

    def test_id_of_a_handle_still_held_cannot_be_used_to_say_hello(self, world: World) -> None:
        client = world.client()
        grant = subscribe(world, client)
        world.leave(client)
        connection = world.connect(pid=9000 + client)
        error = world.refused(connection, protocol.Hello(id=grant.id, major=1, minor=0, resume=client))
        assert isinstance(error, ProtocolError)

    def test_handle_that_is_none_has_no_bells(self, world: World) -> None:
        client = world.client()
        handle = world.new_id()
        world.ask(client, Watch(id=handle, pattern="t"))
        for wrong in (handle, 4711):
            assert isinstance(world.refused(client, Resume(id=world.new_id(), handle=wrong)), NoSuchTopic)

    def test_seat_kept_for_a_watch_waits_for_the_watch_to_be_made_again(self, world: World) -> None:
        client = world.client()
        handle = world.new_id()
        world.ask(client, Watch(id=handle, pattern="t"))
        publish(world, client)
        world.leave(client)
        world.resume(client)
        assert isinstance(world.ask(client, Watch(id=handle, pattern="t")), Done)
        world.resume_overdue(client)
        assert subscribe(world, client, handle).from_start

    @pytest.mark.parametrize("how", ["overdue", "closed"])
    def test_seat_kept_for_a_watch_that_is_not_made_again_goes(self, world: World, how: str) -> None:
        client = world.client()
        handle = world.new_id()
        world.ask(client, Watch(id=handle, pattern="t"))
        publish(world, client)
        world.leave(client)
        world.resume(client)
        assert world.slots
        if how == "overdue":
            world.resume_overdue(client)
        else:
            world.ask(client, Close(id=world.new_id(), handle=handle))
        assert not world.slots


class TestRestart:
    def test_everything_is_as_before_and_nothing_is_given_out_twice(self, world: World) -> None:
        client, other = world.client(), world.client()
        grant, feed = subscribe(world, client), publish(world, client)
        world.restart()
        assert RingBells("t") in world.log
        assert world.resume(client).resumed
        assert publish(world, client).publisher > feed.publisher
        assert isinstance(world.ask(client, Close(id=world.new_id(), handle=grant.id)), Done)
        assert subscribe(world, client).incarnation > grant.incarnation
        assert not world.resume(other).resumed

    def test_client_that_died_meanwhile_leaves_nothing(self, world: World) -> None:
        client = world.client()
        subscribe(world, client)
        world.restart()
        world.process_died(client)
        assert not world.slots
        assert not world.notes

    def test_attached_topic_without_participants_goes(self, world: World) -> None:
        world.ask(world.client(), Declare(id=world.new_id(), topic="t", options=ATTACHED))
        world.restart()
        assert not world.topics

    def test_kept_seats_are_adopted(self, world: World) -> None:
        client = world.client()
        handle = world.new_id()
        world.ask(client, Watch(id=handle, pattern="t"))
        publish(world, client)
        world.restart()
        world.resume(client)
        assert subscribe(world, client, handle).from_start


class TestBye:
    def test_everything_is_released_and_forgotten(self, world: World) -> None:
        client = world.client()
        subscribe(world, client)
        publish(world, client)
        assert world.send(client, Bye(id=world.new_id())) == []
        assert not world.notes
        assert client not in world.living
        assert client not in world.replies


class TestLifetimes:
    def test_attached_topic_goes_with_its_last_participant(self, world: World) -> None:
        client, other = world.client(), world.client()
        feed = publish(world, client, ATTACHED)
        grant = world.ask(other, OpenSubscriber(id=world.new_id(), topic="t"))
        world.ask(client, Close(id=world.new_id(), handle=feed.id))
        assert world.topics
        world.leave(other)
        assert world.topics
        world.process_died(other)
        assert isinstance(grant, SubscriberGranted)
        assert not world.topics

    def test_attached_topic_that_is_only_declared_waits_for_its_first_participant(self, world: World) -> None:
        client = world.client()
        world.ask(client, Declare(id=world.new_id(), topic="t", options=ATTACHED))
        assert world.topics

    def test_attached_topic_that_nobody_wants_any_more_when_it_is_made_goes(self, world: World) -> None:
        client = world.client()
        world.send(client, OpenPublisher(id=900, topic="t", options=ATTACHED))
        world.send(client, protocol.Cancel(id=901, target=900))
        world.topic_made("t")
        assert not world.topics

    def test_idle_topic_is_removed_when_its_time_is_over(self, world: World) -> None:
        client = world.client()
        world.ask(client, Declare(id=world.new_id(), topic="t", options=FLEETING))
        assert world.idle["t"][1] == 5.0
        world.topic_idle("t")
        assert DestroyTopic("t") in world.log

    def test_topic_that_was_used_meanwhile_idles_anew(self, world: World) -> None:
        client = world.client()
        feed = publish(world, client, FLEETING)
        assert "t" not in world.idle
        world.ask(client, Close(id=world.new_id(), handle=feed.id))
        early = world.idle["t"][0]
        feed = publish(world, client, FLEETING)
        assert world.registry.topic_idle("t", early) == []
        world.ask(client, Close(id=world.new_id(), handle=feed.id))
        assert world.registry.topic_idle("t", early) == []
        world.topic_idle("t")
        assert not world.topics

    def test_watchers_hear_of_the_end(self, world: World) -> None:
        client, watcher = world.client(), world.client()
        world.ask(watcher, Watch(id=world.new_id(), pattern="t", tethered=False))
        world.ask(client, Declare(id=world.new_id(), topic="t", options=FLEETING))
        for key in list(world.notes):
            world.ask(key[0], Close(id=world.new_id(), handle=key[1]))
        world.ask(watcher, Watch(id=world.new_id(), pattern="t"))
        world.topic_idle("t")
        assert isinstance(world.replies[watcher][-1], TopicGone)


class TestStalls:
    def test_publisher_has_the_daemon_look_and_the_stalled_subscriber_is_told(self, world: World) -> None:
        feed, desk = world.client(), world.client(name="desk")
        publish(world, feed)
        grant = subscribe(world, desk)
        assert isinstance(world.ask(feed, ReportStall(id=world.new_id(), topic="t")), Done)
        (look,) = world.stalls
        assert [(who.slot, who.name) for who in look.subscribers] == [(grant.slot, "desk")]
        assert look.pid_namespaces == {1}
        world.perform(world.registry.stalled("t", grant.slot, grant.incarnation))
        assert world.log[0] == Untether("t", grant.slot, grant.incarnation)
        assert world.replies[desk][-1] == Untethered(topic="t", handle=grant.id)

    def test_who_does_not_publish_cannot_have_it_look(self, world: World) -> None:
        client = world.client()
        subscribe(world, client)
        world.ask(client, ReportStall(id=world.new_id(), topic="t"))
        assert not world.stalls


class TestStop:
    @pytest.mark.parametrize("uid", [0, DAEMON.uid])
    def test_daemons_user_and_root_may(self, world: World, uid: int) -> None:
        assert isinstance(world.ask(world.client(uid), Stop(id=world.new_id())), Done)
        assert world.stopped

    def test_nobody_else_may(self, world: World) -> None:
        assert isinstance(world.refused(world.client(ALICE), Stop(id=world.new_id())), PermissionDenied)
        assert not world.stopped


def test_participants_beyond_the_rosters_rows_are_refused() -> None:
    world = World(Quotas(participants=2))
    client = world.client()
    subscribe(world, client)
    feed = publish(world, client)
    for request in (OpenPublisher, OpenSubscriber):
        assert isinstance(world.refused(client, request(id=world.new_id(), topic="t")), LimitExceeded)
    world.ask(client, Close(id=world.new_id(), handle=feed.id))
    publish(world, client)
    assert isinstance(world.ask(client, ListTopics(id=world.new_id())), protocol.TopicList)
    assert limits.PARTICIPANTS_MAX > 2


class TestEndings:
    """``PublishersGone``: the end of a topic for a subscriber that reads it like a pipe."""

    def test_subscriber_is_told_once_when_the_last_publisher_has_closed(self, world: World) -> None:
        reader, writer = world.client(), world.client()
        grant = subscribe(world, reader)
        first, second = publish(world, writer), publish(world, writer)
        assert watch_publishers(world, reader, grant) == [Done(id=900)]
        assert close(world, writer, first, reader) == []
        assert close(world, writer, second, reader) == [PublishersGone(topic="t", handle=grant.id)]
        assert close(world, writer, publish(world, writer), reader) == []

    def test_publishers_before_the_grant_count_only_if_the_past_does(self, world: World) -> None:
        reader, writer = world.client(), world.client()
        world.send(writer, Close(id=800, handle=publish(world, writer).id))
        grant = subscribe(world, reader)
        assert watch_publishers(world, reader, grant) == [Done(id=900)]
        assert watch_publishers(world, reader, grant, past=True) == [Done(id=900), gone(grant)]

    def test_publisher_that_came_and_went_after_the_grant_is_told_at_once(self, world: World) -> None:
        reader, writer = world.client(), world.client()
        grant = subscribe(world, reader)
        world.send(writer, Close(id=800, handle=publish(world, writer).id))
        assert watch_publishers(world, reader, grant) == [Done(id=900), gone(grant)]

    def test_kept_slot_counts_publishers_from_the_topics_creation(self, world: World) -> None:
        reader, writer = world.client(), world.client()
        handle = world.new_id()
        world.ask(reader, Watch(id=handle, pattern="t"))
        world.send(writer, Close(id=800, handle=publish(world, writer).id))
        grant = subscribe(world, reader, watch=handle)
        assert watch_publishers(world, reader, grant) == [Done(id=900), gone(grant)]

    def test_absent_publisher_is_not_gone_and_a_dead_one_is(self, world: World) -> None:
        reader, writer = world.client(), world.client()
        grant = subscribe(world, reader)
        publish(world, writer)
        watch_publishers(world, reader, grant)
        heard = len(world.replies[reader])
        world.leave(writer)
        world.resume_overdue(writer)
        assert world.replies[reader][heard:] == []
        world.process_died(writer)
        assert world.replies[reader][heard:] == [gone(grant)]

    def test_absent_subscriber_is_told_when_it_asks_again(self, world: World) -> None:
        reader, writer = world.client(), world.client()
        grant = subscribe(world, reader)
        publisher = publish(world, writer)
        watch_publishers(world, reader, grant)
        world.leave(reader)
        world.send(writer, Close(id=800, handle=publisher.id))
        assert world.resume(reader).resumed
        assert watch_publishers(world, reader, grant) == [Done(id=900), gone(grant)]

    @pytest.mark.parametrize("dies", [True, False])
    def test_next_daemon_counts_publishers_that_are_noted(self, world: World, dies: bool) -> None:
        reader, writer = world.client(), world.client()
        grant, publisher = subscribe(world, reader), publish(world, writer)
        world.restart()
        assert world.resume(reader).resumed
        assert watch_publishers(world, reader, grant) == [Done(id=900)]
        if dies:
            world.process_died(writer)
        else:
            assert world.resume(writer).resumed
            world.send(writer, Close(id=800, handle=publisher.id))
        assert world.replies[reader][-1] == gone(grant)

    @pytest.mark.parametrize("written", [True, False])
    def test_next_daemon_knows_of_publishers_that_had_gone_by_their_records(self, world: World, written: bool) -> None:
        reader, writer = world.client(), world.client()
        grant = subscribe(world, reader)
        world.send(writer, Close(id=800, handle=publish(world, writer).id))
        if written:
            world.written.add("t")
        world.restart()
        assert world.resume(reader).resumed
        assert watch_publishers(world, reader, grant) == [Done(id=900)]
        assert watch_publishers(world, reader, grant, past=True) == [Done(id=900), *[gone(grant)] * written]

    def test_nothing_is_told_to_a_closed_subscriber_or_about_another_handle(self, world: World) -> None:
        reader, writer = world.client(), world.client()
        grant, publisher = subscribe(world, reader), publish(world, writer)
        watch_publishers(world, reader, grant)
        world.send(reader, Close(id=801, handle=grant.id))
        assert world.send(reader, WatchPublishers(id=900, handle=grant.id)) == [Done(id=900)]
        assert world.send(writer, WatchPublishers(id=900, handle=publisher.id)) == [Done(id=900)]
        assert close(world, writer, publisher, reader) == []


def gone(grant: SubscriberGranted) -> PublishersGone:
    return PublishersGone(topic="t", handle=grant.id)


def watch_publishers(
    world: World, client: int, grant: SubscriberGranted, *, past: bool = False
) -> list[protocol.Outbound]:
    return world.send(client, WatchPublishers(id=900, handle=grant.id, past=past))


def close(world: World, writer: int, publisher: PublisherGranted, reader: int) -> list[protocol.Outbound]:
    """What ``reader`` hears when ``writer`` closes ``publisher``."""
    heard = len(world.replies[reader])
    world.send(writer, Close(id=800, handle=publisher.id))
    return world.replies[reader][heard:]
