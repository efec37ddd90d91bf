"""The binding: buffers, lifetimes, the iterator protocol, and that nothing leaks."""

from __future__ import annotations

import asyncio
import gc
import sys

import pytest

from shmd import _core, limits, segment
from shmd.errors import ClosedError, ConcurrentUse, CorruptTopic, ForkedError, InvalidOption, RecordTooLarge
from tests.children import in_child
from tests.local_topic import PlainFeed, drain, local_topic


def test_padding_that_no_record_can_have_caused_is_damage() -> None:
    """Believed, it would have a reader copy the whole ring."""
    fields = _core.layout()["log"]
    with local_topic(wait=True) as topic:
        cursor = topic.cursor()
        cursor.seek_start()
        assert cursor.join()
        _core.store_word(topic.log_segment.mapping, _core.HEADER_BYTES, 2 << 32 | topic.capacity)
        _core.store_word(topic.log_segment.mapping, fields["tail"][0], topic.capacity)
        with pytest.raises(CorruptTopic):
            drain(cursor)


def test_ctl_that_says_it_has_fewer_slots_is_damaged() -> None:
    """Believed, a slot that the daemon granted would not exist."""
    offset, size = _core.layout()["ctl"]["slot_count"]
    with local_topic() as topic:
        topic.ctl_segment.buf[offset : offset + size] = (1).to_bytes(4, "little")
        with pytest.raises(CorruptTopic):
            topic.open_log(topic.log_segment, topic.ctl_segment)


class TestMapping:
    def test_mapping_refuses_to_end_under_a_view(self) -> None:
        with local_topic() as topic, segment.attach(topic.log_segment.id, readonly=True) as reader:
            view = memoryview(reader.mapping)
            assert reader.mapping.exports == 1
            with pytest.raises(BufferError, match="1 views"):
                reader.mapping.invalidate()
            view.release()
            reader.mapping.invalidate()
            with pytest.raises(ClosedError):
                memoryview(reader.mapping)

    def test_readonly_mapping_refuses_writes(self) -> None:
        with local_topic() as topic, segment.attach(topic.log_segment.id, readonly=True) as reader:
            with memoryview(reader.mapping) as view, pytest.raises(TypeError, match="read-only"):
                view[0] = 1
            with open("/proc/self/maps") as maps:  # the kernel's word for it
                lines = [line for line in maps if line.startswith(f"{reader.mapping.address:x}-")]
            assert len(lines) == 1
            assert lines[0].split()[1] == "r--s"

    def test_publishing_needs_a_writable_log(self) -> None:
        with local_topic() as topic, segment.attach(topic.log_segment.id, readonly=True) as reader:
            log = topic.open_log(reader, topic.ctl_segment)
            with pytest.raises(ValueError, match="writable"):
                _core.Appender(log, publisher=1, bell_fd=topic.bell, yield_records=1, yield_s=1.0)
            log.close()

    def test_word_is_stored_and_loaded_whole(self) -> None:
        with local_topic() as topic:
            mapping = topic.log_segment.mapping
            _core.store_word(mapping, 4096, 2**64 - 1)
            assert _core.load_word(mapping, 4096) == 2**64 - 1
            for offset in (-8, 4, mapping.size - 4, mapping.size):
                with pytest.raises(ValueError, match="no aligned word"):
                    _core.load_word(mapping, offset)
            with segment.attach(topic.log_segment.id, readonly=True) as reader, pytest.raises(BufferError):
                _core.store_word(reader.mapping, 4096, 1)


class TestLog:
    def test_log_refuses_segments_of_another_topic(self) -> None:
        with local_topic() as one, local_topic() as other, pytest.raises(CorruptTopic, match="'local'"):
            one.open_log(one.log_segment, other.ctl_segment)

    def test_log_stays_while_a_cursor_lives(self) -> None:
        with local_topic() as topic:
            cursor = topic.cursor()
            with pytest.raises(BufferError):
                topic.log.close()
            cursor.close()
            topic.log.close()
            with pytest.raises(ClosedError):
                topic.log.stat()

    def test_layout_is_exported_as_compiled(self) -> None:
        layout = _core.layout()
        assert set(layout) == {"log", "record", "ctl", "slot", "cell"}
        assert layout["log"]["tail"] == (0x200, 8)


class TestAppender:
    def test_appender_names_the_limit_of_a_record_that_is_too_large(self) -> None:
        with local_topic() as topic:
            appender = topic.appender()
            limit = topic.log.record_size_max
            assert limit == 4096 // limits.RECORD_SIZE_DIVISOR - _core.RECORD_OVERHEAD_BYTES
            assert appender.append(bytes(limit)) == 1
            with pytest.raises(RecordTooLarge, match=f"{limit + 1} bytes .*'local'.* {limit} bytes"):
                appender.append(bytes(limit + 1))
            with pytest.raises(RecordTooLarge):
                appender.append_many([bytes(400)] * 3)
            assert topic.log.stat()["last_seq"] == 1

    def test_appender_takes_any_contiguous_buffer(self) -> None:
        with local_topic() as topic:
            appender, cursor = topic.appender(), topic.cursor()
            assert cursor.seek_new()
            assert cursor.join()
            for payload in (b"bytes", bytearray(b"array"), memoryview(b"a view")[2:]):
                appender.append(payload)
            appender.append_many((b"one", bytearray(b"two")))
            assert [r.raw for r in drain(cursor)] == [b"bytes", b"array", b"view", b"one", b"two"]
            with pytest.raises(TypeError):
                appender.append("text")  # type: ignore[arg-type]
            with pytest.raises(BufferError):
                appender.append(memoryview(bytes(8))[::2])
            with pytest.raises(ValueError, match="nothing"):
                appender.append_many([])

    def test_reservation_is_committed_whole_or_not_at_all(self) -> None:
        with local_topic(exclusive=True) as topic:
            appender, cursor = topic.appender(), topic.cursor()
            assert cursor.seek_new()
            assert cursor.join()
            reservation = appender.reserve(5)
            assert not isinstance(reservation, int)
            view = memoryview(reservation)
            with pytest.raises(ConcurrentUse):
                appender.append(b"in between")
            with pytest.raises(BufferError, match="views"):
                reservation.commit()
            view[:] = b"hello"
            view.release()
            assert reservation.commit() == 1
            with pytest.raises(ClosedError):
                reservation.commit()
            abandoned = appender.reserve(5)
            assert not isinstance(abandoned, int)
            abandoned.abandon()
            assert appender.append(b"next") == 2
            assert [r.raw for r in drain(cursor)] == [b"hello", b"next"]

    def test_reservation_needs_an_exclusive_topic(self) -> None:
        with local_topic() as topic, pytest.raises(InvalidOption, match="exclusive"):
            topic.appender().reserve(5)


class TestFeed:
    def filled(self, topic: object, count: int, **turn: float) -> PlainFeed:
        appender, cursor = topic.appender(), topic.cursor()  # type: ignore[attr-defined]
        cursor.seek_new()
        cursor.join()
        for n in range(count):
            appender.append(b"%d" % n)
        feed = PlainFeed(**turn)  # type: ignore[arg-type]
        while cursor.read(feed, 65536):
            pass
        return feed

    def test_iteration_hands_out_ready_records_in_order(self) -> None:
        async def main() -> list[bytes]:
            return [record.raw async for record in feed]

        with local_topic(65536) as topic:
            feed = self.filled(topic, 300)
            assert asyncio.run(main()) == [b"%d" % n for n in range(300)]

    def test_step_that_was_never_awaited_consumes_nothing(self) -> None:
        with local_topic() as topic:
            feed = self.filled(topic, 3)
            step = feed.__anext__()
            assert feed.ready == 2
            del step
            assert feed.ready == 3
            assert [r.raw for r in feed.take(9)] == [b"0", b"1", b"2"]

    def test_step_awaited_twice_raises(self) -> None:
        async def main() -> None:
            step = feed.__anext__()
            assert (await step).raw == b"0"
            with pytest.raises(RuntimeError, match="already"):
                await step

        with local_topic() as topic:
            feed = self.filled(topic, 2)
            asyncio.run(main())

    def test_step_is_an_ordinary_iterator_too(self) -> None:
        with local_topic() as topic:
            feed = self.filled(topic, 1)
            with pytest.raises(StopIteration) as stop:
                next(iter(feed.__anext__().__await__()))
            assert stop.value.value.raw == b"0"

    def test_feed_is_due_after_its_records_or_its_time(self) -> None:
        with local_topic() as topic:
            feed = self.filled(topic, 5, yield_records=3)
            feed.take(2)
            assert not feed.due
            feed.pop()
            assert feed.due
            feed.turned()
            assert not feed.due
            assert self.filled(topic, 1, yield_s=0.0).due

    def test_lost_counts_what_was_handed_out(self) -> None:
        with local_topic() as topic:
            appender, cursor = topic.appender(), topic.cursor()
            cursor.seek_start()
            cursor.join()
            for _ in range(200):
                appender.append(bytes(100))
            feed = PlainFeed()
            cursor.read(feed, 65536)
            assert feed.lost == 0
            first = feed.pop()
            assert first is not None
            assert feed.lost == first.lost == first.seq - 1 > 0


class TestCursor:
    def test_cursor_goes_on_where_another_stood(self) -> None:
        with local_topic() as topic:
            appender, old = topic.appender(), topic.cursor(0)
            old.seek_start()
            assert old.join()
            for number in range(5):
                appender.append(b"%d" % number)
            drain(old)
            new = topic.cursor(1)
            new.seek_position(old.position, old.next_seq)
            old.close()
            assert new.join()
            appender.append(b"next")
            assert [(r.raw, r.lost) for r in drain(new)] == [(b"next", 0)]
            late = topic.cursor(2)
            late.seek_position(new.position, new.next_seq)
            assert late.join()
            for _ in range(100):
                appender.append(bytes(100))
            first = drain(late)[0]
            assert first.lost == first.seq - 7 > 0


class TestFork:
    def test_forked_child_cannot_use_or_disturb_what_it_inherited(self) -> None:
        def child() -> list[str]:
            refused = []
            for use in (lambda: appender.append(b"child"), cursor.arm, topic.log.stat, lambda: cursor.read(feed, 100)):
                try:
                    use()
                except ForkedError:
                    refused.append("refused")
            cursor.close()
            return refused

        with local_topic(wait=True) as topic:
            appender, cursor, feed = topic.appender(), topic.cursor(), PlainFeed()
            assert cursor.seek_new()
            assert cursor.join()
            before = topic.log.slot_stat(0)
            assert in_child(child) == ["refused"] * 4
            assert topic.log.slot_stat(0) == before
            assert appender.append(b"parent") == 1
            assert [r.raw for r in drain(cursor)] == [b"parent"]


class TestRecord:
    def test_value_is_decoded_once_and_on_demand(self) -> None:
        calls: list[bytes] = []

        def decode(raw: bytes) -> list[bytes]:
            calls.append(raw)
            return [raw]

        with local_topic() as topic:
            cursor = topic.cursor(decode=decode)
            cursor.seek_start()
            cursor.join()
            topic.appender(9).append(b"x")
            (record,) = drain(cursor)
            assert calls == []
            assert record.value is record.value
            assert calls == [b"x"]
            assert (record.seq, record.publisher, record.topic, record.lost) == (1, 9, "local", 0)
            assert record.time == pytest.approx(record.time_ns / 1e9)
            assert "seq=1" in repr(record)

    def test_value_raises_what_the_decoder_raises_every_time(self) -> None:
        with local_topic() as topic:
            topic.appender().append(b"x")
            record = topic.log.newest(int)
            assert record is not None
            for _ in range(2):
                with pytest.raises(ValueError, match="invalid literal"):
                    _ = record.value

    def test_value_raises_what_explain_makes_of_it_with_its_cause(self) -> None:
        def explain(raw: bytes, error: Exception) -> Exception:
            return CorruptTopic(f"{raw!r} gave {type(error).__name__}")

        with local_topic() as topic:
            topic.appender().append(b"x")
            record = topic.log.newest(int, explain)
            assert record is not None
            with pytest.raises(CorruptTopic, match="b'x' gave ValueError") as raised:
                _ = record.value
            assert isinstance(raised.value.__cause__, ValueError)
            broken = topic.log.newest(int, lambda raw: KeyError(raw))  # type: ignore[arg-type, misc]
            assert broken is not None
            with pytest.raises(TypeError):
                _ = broken.value

    def test_record_in_a_cycle_is_collected(self) -> None:
        with local_topic() as topic:
            topic.appender().append(b"x")
            record = topic.log.newest(lambda raw: [raw])
            assert record is not None
            record.value.append(record)  # type: ignore[arg-type]
            del record
            assert gc.collect() > 0


def test_core_gives_back_what_it_takes() -> None:
    """References of every call: a thousand rounds leave the interpreter where it was."""
    with local_topic(exclusive=True, wait=True) as topic:
        appender = topic.appender()

        async def iterate(feed: PlainFeed) -> None:
            async for record in feed:
                _ = record.value, record.raw, record.time

        def one_round() -> None:
            topic.log.slot_grant(0, 1, live=False, tethered=False)
            cursor = _core.Cursor(
                topic.log, slot=0, incarnation=1, tethered=True, space_fd=-1, decode=decode, explain=None
            )
            cursor.seek_all()
            cursor.join()
            appender.append(b"x" * 50)
            appender.append_many([b"y", b"z" * 70])
            reservation = appender.reserve(5)
            if not isinstance(reservation, int):
                reservation.commit()
            with pytest.raises(RecordTooLarge):
                appender.append(bytes(5000))
            feed = PlainFeed()
            cursor.read(feed, 65536)
            feed.take(1)
            loop.run_until_complete(iterate(feed))
            topic.log.stat()
            topic.log.newest(bytes)
            cursor.close()

        def decode(raw: bytes) -> list[bytes]:
            return [raw]

        loop = asyncio.new_event_loop()
        try:
            for _ in range(200):
                one_round()
            gc.collect()
            before = sys.getallocatedblocks()
            for _ in range(1000):
                one_round()
            gc.collect()
            assert sys.getallocatedblocks() - before < 500  # a leak of one object a round is 1000
        finally:
            loop.close()
