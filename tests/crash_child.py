"""A participant that is told where to die: it publishes, joins, reads and waits in turns until it gets there.

python -m tests.crash_child FAILPOINT ACTION SKIP LOG_ID CTL_ID TOPIC_ID CAPACITY FLAGS BELL_FD
"""

from __future__ import annotations

import sys
import zlib

PUBLISHER = 2
SLOT = 1
ROUNDS = 60


def payload(number: int) -> bytes:
    """Of many sizes, and able to tell whether it is whole."""
    body = number.to_bytes(8, "little") + bytes([number % 251]) * (number * 37 % 600)
    return body + zlib.crc32(body).to_bytes(4, "little")


def is_whole(raw: bytes) -> bool:
    return zlib.crc32(raw[:-4]).to_bytes(4, "little") == raw[-4:]


def main(failpoint: str, action: str, skip: int, log_id: int, ctl_id: int, topic_id: bytes, *numbers: int) -> None:
    from tests import failpoint_core

    failpoint_core.use()
    from shmd import _core, segment
    from tests.local_topic import PlainFeed

    capacity, flags, bell = numbers
    with segment.attach(log_id, readonly=False) as log_segment, segment.attach(ctl_id, readonly=False) as ctl_segment:
        log = _core.Log(
            log_segment.mapping, ctl_segment.mapping, name="local", topic_id=topic_id, capacity=capacity, flags=flags
        )
        appender = _core.Appender(log, publisher=PUBLISHER, bell_fd=bell, yield_records=1, yield_s=1.0)
        _core.failpoint_set(failpoint, action, skip)
        number = 0
        for incarnation in range(1000, 1000 + ROUNDS):
            log.slot_grant(SLOT, incarnation, live=False, tethered=False)
            cursor = _core.Cursor(
                log, slot=SLOT, incarnation=incarnation, tethered=True, space_fd=bell, decode=bytes, explain=None
            )
            cursor.seek_seq(1, 1)
            while not (cursor.seek_new() and cursor.join()):
                pass
            cursor.arm()
            for _ in range(40):
                if appender.append(payload(number)) <= 0:
                    appender.arm_space()
                    break
                number += 1
            feed = PlainFeed()
            while cursor.read(feed, 1024):
                pass
            cursor.close()
        appender.close()
        log.close()


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:6]), bytes.fromhex(sys.argv[6]), *map(int, sys.argv[7:]))  # type: ignore[arg-type]
