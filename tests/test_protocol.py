"""What the control protocol accepts and refuses, message by message."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from shmd import limits, protocol
from shmd.errors import LimitExceeded, ProtocolError, RequestRefused, ShmdError


def packet(**fields: Any) -> bytes:
    return msgspec.msgpack.encode(fields)


class TestRequests:
    def test_message_is_a_map_with_its_type(self) -> None:
        encoded = protocol.encode(protocol.Peek(id=7, topic="prices"))
        assert msgspec.msgpack.decode(encoded) == {"type": "peek", "id": 7, "topic": "prices"}

    def test_fields_of_a_newer_minor_version_are_ignored(self) -> None:
        assert protocol.decode_request(packet(type="close", id=1, handle=2, later="x")) == protocol.Close(
            id=1, handle=2
        )

    def test_fields_left_out_have_their_defaults(self) -> None:
        decoded = protocol.decode_request(packet(type="subscribe", id=1, topic="t"))
        assert decoded == protocol.OpenSubscriber(id=1, topic="t", watch=None, tethered=True)

    @pytest.mark.parametrize(
        ("fields", "complaint"),
        [
            ({"type": "publish", "topic": "t"}, "`id`"),
            ({"type": "publish", "id": 0, "topic": "t"}, r"\$\.id"),
            ({"type": "publish", "id": 2**53 + 1, "topic": "t"}, r"\$\.id"),
            ({"type": "publish", "id": -1, "topic": "t"}, r"\$\.id"),
            ({"type": "publish", "id": "1", "topic": "t"}, r"\$\.id"),
            ({"type": "publish", "id": True, "topic": "t"}, r"\$\.id"),
            ({"type": "publish", "id": 1.5, "topic": "t"}, r"\$\.id"),
            ({"type": "publish", "id": 1, "topic": ""}, r"\$\.topic"),
            ({"type": "publish", "id": 1, "topic": "x" * 256}, r"\$\.topic"),
            ({"type": "publish", "id": 1, "topic": b"t"}, r"\$\.topic"),
            ({"type": "publish", "id": 1, "topic": None}, r"\$\.topic"),
            ({"type": "publish", "id": 1, "topic": "t", "options": 3}, r"\$\.options"),
            ({"type": "publish", "id": 1, "topic": "t", "options": {"when_full": "panic"}}, r"\$\.options\.when_full"),
            ({"type": "publish", "id": 1, "topic": "t", "options": {"size_bytes": -1}}, r"\$\.options\.size_bytes"),
            ({"type": "publish", "id": 1, "topic": "t", "options": {"size_bytes": 2**63}}, r"\$\.options\.size_bytes"),
            ({"type": "publish", "id": 1, "topic": "t", "options": {"mode": 0o1000}}, r"\$\.options\.mode"),
            ({"type": "publish", "id": 1, "topic": "t", "options": {"exclusive": 1}}, r"\$\.options\.exclusive"),
            ({"type": "hello", "id": 1, "major": 1, "minor": 0, "name": "x" * 65}, r"\$\.name"),
            ({"type": "hello", "id": 1, "major": 2**32, "minor": 0}, r"\$\.major"),
            ({"type": "wait-subscribers", "id": 1, "topic": "t", "count": 1025}, r"\$\.count"),
            ({"type": "welcome", "id": 1}, r"\$\.type"),
            ({"type": "no such", "id": 1}, r"\$\.type"),
            ({"type": 3, "id": 1}, r"\$\.type"),
            ({"id": 1}, "type"),
        ],
    )
    def test_ill_typed_request_is_an_error_that_names_the_field(self, fields: dict[str, Any], complaint: str) -> None:
        with pytest.raises(ProtocolError, match=complaint):
            protocol.decode_request(packet(**fields))

    @pytest.mark.parametrize(
        "raw",
        [
            b"",
            b"\xc1",
            b"\x81",
            b"\x00",
            b"\x90",
            packet(type="close", id=1, handle=2) + b"\x00",
            packet(type="close", id=1, handle=2)[:-1],
            b"\x82\xa4type\xa5close\xa2id\xd9\x02\xff\xfe",
            b"\xdf\xff\xff\xff\xff",
            b"\xdd\xff\xff\xff\xff",
            b"\xdb\xff\xff\xff\xff",
            b"\xc9\x7f\xff\xff\xff\x01",
        ],
    )
    def test_bytes_that_are_no_message_are_an_error(self, raw: bytes) -> None:
        with pytest.raises(ProtocolError):
            protocol.decode_request(raw)

    @pytest.mark.parametrize("nest", [b"\x91", b"\x81\xa1a", b"\x81\xa7options"])
    def test_deep_nesting_is_an_error_and_no_stack_overflow(self, nest: bytes) -> None:
        deep = nest * (limits.MESSAGE_BYTES_MAX // len(nest) - 40)
        unknown_field = b"\x84\xa4type\xa5close\xa2id\x01\xa6handle\x02\xa1x"
        for raw in (deep, deep + b"\xc0", unknown_field + deep + b"\xc0"):
            assert len(raw) <= limits.MESSAGE_BYTES_MAX
            with pytest.raises(ProtocolError):
                protocol.decode_request(raw)

    def test_oversized_packet_is_an_error_naming_the_limit(self) -> None:
        padded = packet(type="close", id=1, handle=2, padding=bytes(limits.MESSAGE_BYTES_MAX))
        with pytest.raises(ProtocolError, match=str(limits.MESSAGE_BYTES_MAX)):
            protocol.decode_request(padded)

    def test_error_quotes_no_more_of_a_packet_than_fits_a_reply(self) -> None:
        with pytest.raises(ProtocolError) as caught:
            protocol.decode_request(packet(type="x" * 60_000, id=1))
        assert len(protocol.encode(protocol.refusal(0, caught.value))) < 1000


class TestReplies:
    @pytest.mark.parametrize("error_type", [LimitExceeded, ProtocolError, RequestRefused])
    def test_refusal_becomes_the_same_error_on_the_other_side(self, error_type: type[ShmdError]) -> None:
        error = error_type("no", "do otherwise")
        decoded = protocol.decode_reply(protocol.encode(protocol.refusal(9, error)))
        assert isinstance(decoded, protocol.Refused)
        assert decoded.id == 9
        again = ShmdError.from_wire(decoded.code, decoded.message, decoded.hint)
        assert type(again) is error_type
        assert (again.message, again.hint) == ("no", "do otherwise")

    def test_request_is_no_reply_and_the_other_way_round(self) -> None:
        with pytest.raises(ProtocolError):
            protocol.decode_reply(protocol.encode(protocol.ListTopics(id=1)))
        with pytest.raises(ProtocolError):
            protocol.decode_request(protocol.encode(protocol.Done(id=1)))

    def test_message_that_would_not_fit_a_packet_is_not_encoded(self) -> None:
        with pytest.raises(ProtocolError, match=str(limits.MESSAGE_BYTES_MAX)):
            protocol.encode(protocol.Refused(id=1, code="x", message="y" * limits.MESSAGE_BYTES_MAX))

    def test_fullest_stat_fits_a_packet(self) -> None:
        name = "\N{GRINNING FACE}" * limits.CLIENT_NAME_BYTES_MAX
        big = 2**64 - 1
        info = protocol.TopicInfo(
            name="x" * limits.TOPIC_NAME_BYTES_MAX,
            topic_id=bytes(16),
            log_id=2**32 - 1,
            log_key=2**32 - 1,
            ctl_id=2**32 - 1,
            ctl_key=2**32 - 1,
            size_bytes=2**63 - 1,
            when_full="discard-old",
            exclusive=True,
            mode=0o777,
            uid=2**32 - 1,
            gid=2**32 - 1,
            created_ns=2**63 - 1,
        )
        publisher = protocol.PublisherStat(name=name, pid=2**31, uid=2**32, publisher=2**32)
        subscriber = protocol.SubscriberStat(
            name=name, pid=2**31, uid=2**32, slot=1023, tethered=True, lag_bytes=big, lost=big
        )
        stat = protocol.TopicStat(
            topic=info,
            head=big,
            tail=big,
            first_seq=big,
            last_seq=big,
            last_time_ns=big,
            published=big,
            published_bytes=big,
            lock_owner_tid=big,
            takeovers=big,
            publishers=(publisher,) * limits.PAGE_ENTRIES_MAX,
            subscribers=(subscriber,) * limits.PAGE_ENTRIES_MAX,
            more_participants=2000,
        )
        reply = protocol.StatReply(id=2**53, stat=stat)
        assert protocol.decode_reply(protocol.encode(reply)) == reply
