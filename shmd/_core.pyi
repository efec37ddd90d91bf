"""The C core, bound. The binding converts; what it calls decides (csrc/). Nothing here waits.

Every object that reads or writes a segment holds an export of its ``Mapping``: a mapping cannot be given back while
something could still touch it.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Generic, Self, TypeVar, final

from typing_extensions import Buffer

T = TypeVar("T")
Explain = Callable[[bytes, Exception], Exception]
"""Makes the exception to raise from the payload and what ``decode`` raised."""

LAYOUT_MAJOR: Final[int]
LAYOUT_MINOR: Final[int]
HEADER_BYTES: Final[int]
"""Size of the header page of a log and of a ctl segment."""
SLOT_BYTES: Final[int]
RECORD_HEADER_BYTES: Final[int]
RECORD_OVERHEAD_BYTES: Final[int]
"""Header and trailer of a record, before padding to 8."""
FLAG_WAIT: Final[int]
FLAG_EXCLUSIVE: Final[int]
FLAG_FIFO: Final[int]
CELL_SIZE_MAX: Final[int]
"""Bytes of the largest value that a cell takes."""
INCARNATION_MAX: Final[int]
"""The largest incarnation of a slot; they are never reused."""
FULL: Final[int]
"""``append``: no room on a `wait` topic."""
BUSY: Final[int]
"""``append``: another publisher is in the critical section."""

def layout() -> dict[str, dict[str, tuple[int, int]]]:
    """Struct name → field → (offset, size), as compiled; docs/memory-layout.md is checked against it."""

def ctl_size_bytes(slots: int) -> int: ...
def store_word(mapping: Mapping, offset: int, value: int) -> None:
    """Store an aligned 8-byte word with release: who loads it sees all that was written before. ValueError outside."""

def load_word(mapping: Mapping, offset: int) -> int:
    """Load an aligned 8-byte word with acquire. ValueError outside."""

def bells_rung(epoll_fd: int) -> tuple[int, ...]:
    """The descriptors in this epoll instance that are ready now, 64 at most. Does not wait. OSError with errno.

    What ``select.epoll.poll(0)`` does, at half its price: it stands between every ring and its reader.
    """

def shm_stat(shmid: int) -> tuple[int, int, int, int, int, int, int, int, int, int, int, int, int]:
    """shmctl(IPC_STAT): (key, size_bytes, uid, gid, cuid, cgid, mode, attachments, creator_pid, last_pid, attach_time,
    detach_time, change_time), times in whole seconds; ``mode`` has SHM_DEST (0o1000) too. OSError with errno."""

def shm_errno(shmid: int, readonly: bool) -> int:
    """Why attaching ``shmid`` fails: tries it, gives the errno, or 0 if it works (nothing stays attached)."""

def shm_set(shmid: int, uid: int, gid: int, mode: int) -> None:
    """shmctl(IPC_SET) without reading first, which sysv_ipc's setters do. OSError with errno."""

def sem_stat(semid: int) -> tuple[int, int, int, int, int, int, int, int, int, int, int, int]:
    """semctl(IPC_STAT, GETVAL, GETNCNT, GETPID): (key, semaphores in the set, uid, gid, cuid, cgid, mode, value of the
    first, waiting for it, pid of its last change, time of the last semop, change_time). OSError with errno."""

def sem_set(semid: int, uid: int, gid: int, mode: int) -> None:
    """semctl(IPC_SET) without reading first. OSError with errno."""

def cell_size_bytes(size: int) -> int:
    """Bytes that a cell for values of ``size`` bytes takes; 0: there is none for such values."""

def failpoints() -> tuple[str, ...]:
    """Names of all failpoints; empty in a production build."""

def failpoint_set(name: str, action: str, skip: int = 0) -> None:
    """Test build: at the ``skip``-th later pass of ``name``: "kill" (SIGKILL self), "stop" (SIGSTOP self) or "off".

    ValueError in a production build and for an unknown name.
    """

@final
class Mapping:
    """An attached segment as a buffer that counts its exports and is honest about read-only. Does not detach."""

    def __init__(self, address: int, size: int, readonly: bool) -> None: ...
    @property
    def address(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def readonly(self) -> bool: ...
    @property
    def exports(self) -> int: ...
    def prefault(self, offset: int, length: int) -> None:
        """MADV_POPULATE_WRITE with the GIL released; offset a multiple of the page size. OSError with errno."""
    def invalidate(self) -> None:
        """From now on there is nothing behind this buffer. BufferError while it has exports. Twice is fine."""
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __release_buffer__(self, view: memoryview, /) -> None: ...

def log_format(
    log: Mapping, *, capacity: int, flags: int, instance_id: bytes, topic_id: bytes, created_ns: int, name: str
) -> None:
    """Write an empty log's header page; the magic last. The mapping is HEADER_BYTES + capacity bytes long."""

def ctl_format(ctl: Mapping, *, slots: int, topic_id: bytes) -> None: ...

@final
class Log:
    """A topic's log and ctl segments, checked against what the daemon said. CorruptTopic if they differ.

    ``ctl`` may be None for one who only looks (``newest``, ``stat``).
    """

    def __init__(
        self, log: Mapping, ctl: Mapping | None, *, name: str, topic_id: bytes, capacity: int, flags: int
    ) -> None: ...
    @property
    def name(self) -> str: ...
    @property
    def capacity(self) -> int: ...
    @property
    def record_size_max(self) -> int:
        """The largest payload, in bytes."""
    def stat(self) -> dict[str, int]:
        """head, tail, first_seq, last_seq, last_time_ns, published, published_bytes, lock_owner_tid, takeovers."""
    def newest(self, decode: Callable[[bytes], T], explain: Explain | None = None) -> Record[T] | None:
        """The newest record, or None. Tries again if overtaken, a bounded number of times."""
    def slot_grant(self, slot: int, incarnation: int, *, live: bool, tethered: bool) -> None:
        """Daemon: give the slot to a new subscriber. ``live``: it counts as one at once, its cursor (tethered or not)
        at position 0; else from its ``join`` on."""
    def slot_release(self, slot: int, incarnation: int) -> None:
        """Daemon: take the slot back, if ``incarnation`` still holds it, and its tether with it."""
    def slot_untether(self, slot: int, incarnation: int) -> bool:
        """Take the tether away from this incarnation, if it has one: it keeps its slot, and holds nobody any more. Ring
        the space bell afterwards."""
    def slot_bury(self, slot: int, incarnation: int) -> bool:
        """With a proof of death: the holder counts as no subscriber any more, and has no tether. Its slot stays taken
        until the daemon has it back."""
    def next_live(self, slot: int) -> tuple[int, int] | None:
        """(slot, incarnation) of the first slot from ``slot`` on that a subscriber has joined, if there is one."""
    def has_subscribers(self) -> bool:
        """Whether any subscriber has joined. A few loads."""
    def slowest(self) -> tuple[int, int] | None:
        """(slot, incarnation) of the slowest tethered cursor, if there is one."""
    def declare_owner_dead(self, tid: int) -> bool:
        """Daemon, with a proof of death and a writable log: mark the lock as the kernel does, if ``tid`` holds it."""
    def slot_stat(self, slot: int) -> tuple[int, bool, bool, int, int]:
        """(incarnation, live, tethered, lag_bytes, lost)."""
    def ring_readers(self, bell_fd: int) -> bool:
        """Wake all who sleep for records, through the record bell, or the topic's directory of FIFOs. False: not all
        could be, for want of a descriptor, or because the directory is no longer the topic's."""
    def ring_publishers(self, bell_fd: int) -> bool:
        """The same for all who sleep for room."""
    def close(self) -> None:
        """Give the mappings back; later use raises ClosedError. BufferError while Appenders or Cursors live."""

@final
class Record(Generic[T]):
    """One record. ``value`` is decoded when it is first asked for, which may raise DecodeError."""

    @property
    def value(self) -> T: ...
    @property
    def raw(self) -> bytes: ...
    @property
    def seq(self) -> int: ...
    @property
    def time_ns(self) -> int: ...
    @property
    def time(self) -> float:
        """Seconds since the epoch, CLOCK_REALTIME, when it was committed."""
    @property
    def topic(self) -> str: ...
    @property
    def publisher(self) -> int: ...
    @property
    def lost(self) -> int:
        """How many records this subscriber missed right before this one."""

class Feed(Generic[T]):
    """Base of Subscription: ready records in order, and the asynchronous iterator over them.

    A step over a ready record is a C awaitable with ``am_send``: no coroutine, no frame. Where there is none, or the
    loop is due a turn, ``__anext__`` returns ``self._step()``, which the subclass writes as a coroutine.
    Per-turn limits: YIELD_RECORDS and YIELD_S, given to the constructor.
    """

    def __init__(self, *, yield_records: int, yield_s: float) -> None: ...
    def __aiter__(self) -> Self: ...
    def __anext__(self) -> Awaitable[Record[T]]: ...
    def _step(self) -> Awaitable[Record[T]]: ...
    def pop(self) -> Record[T] | None:
        """The next ready record, or None. Counts against the turn."""
    def take(self, count: int) -> list[Record[T]]:
        """Up to ``count`` ready records. Counts against the turn."""
    def clear(self) -> None: ...
    @property
    def ready(self) -> int: ...
    @property
    def lost(self) -> int:
        """Total of ``lost`` over all records handed out."""
    @property
    def due(self) -> bool:
        """Whether the loop should get a turn before the next record."""
    def turned(self) -> None:
        """The loop had its turn."""

@final
class Cursor:
    """A subscriber's place in one log. Seek, join, then read."""

    def __init__(
        self,
        log: Log,
        *,
        slot: int,
        incarnation: int,
        tethered: bool,
        space_fd: int,
        decode: Callable[[bytes], Any],
        explain: Explain | None,
    ) -> None: ...
    def seek_start(self) -> None:
        """Position 0, before record 1: for a grant that came ``from_start``."""
    def seek_position(self, position: int, next_seq: int) -> None:
        """Where another cursor of this topic stood (its ``position`` and ``next_seq``), to go on from there. What was
        discarded meanwhile counts as lost."""
    def seek_new(self) -> bool:
        """Behind the newest record. False: overtaken, call again after giving others a turn. So too the next two."""
    def seek_last(self) -> bool: ...
    def seek_all(self) -> bool: ...
    def seek_seq(self, seq: int, steps: int) -> bool:
        """The record ``seq``, or the oldest (then ``lost`` counts from ``seq``), or, if it is in the future, the end,
        from where earlier records are skipped. False after ``steps`` records: call again to go on."""
    def seek_time(self, time_ns: int, steps: int) -> bool:
        """The first record at or after ``time_ns``, or the end. False: call again to go on."""
    space_fd: int
    """The bell of publishers that wait for room, or the directory of FIFOs. To be replaced when there is a new one."""
    def join(self) -> bool:
        """Store the cursor (and the tether, if any) in the ctl. False: publishers went past meanwhile; seek again."""
    def read(self, feed: Feed[Any], bytes_max: int) -> int:
        """Copy up to ``bytes_max`` bytes of records (at least one record) out into ``feed``, move the cursor, and ring
        publishers that wait for room. How many; 0: nothing new. CorruptTopic on what no publisher writes."""
    def arm(self) -> bool:
        """About to sleep. True: go to sleep on the bell. False: something came meanwhile, read again."""
    def leave(self) -> None:
        """Take the cursor (and tether) out of the ctl and ring publishers that wait for room. Twice is fine."""
    @property
    def available(self) -> bool:
        """Whether something is committed that was not read. One load."""
    @property
    def tethered(self) -> bool:
        """False too after somebody untethered this subscriber."""
    @property
    def position(self) -> int: ...
    @property
    def next_seq(self) -> int: ...
    @property
    def lag_bytes(self) -> int: ...
    def close(self) -> None:
        """leave(), then give the log back."""

@final
class Appender:
    """A publisher's end of one log. Not for two threads at a time (the GIL sees to that)."""

    def __init__(self, log: Log, *, publisher: int, bell_fd: int, yield_records: int, yield_s: float) -> None: ...
    def append(self, payload: Buffer) -> int:
        """Publish: lock, copy, commit, ring. The sequence number (≥ 1), FULL or BUSY. RecordTooLarge, CorruptTopic."""
    def append_many(self, payloads: Sequence[Buffer]) -> int:
        """The same for several, all or nothing, one commit, one bell. The last one's sequence number; FULL; BUSY."""
    def arm_space(self) -> bool:
        """About to sleep until there is room for what the last append wanted. True: sleep on the space bell. False: try
        again."""
    @property
    def unheard(self) -> bool:
        """So many sleep for room that no bell will ring for this one: after ``arm_space`` look again by yourself."""
    def reserve(self, size_bytes: int) -> Reservation | int:
        """Exclusive topics: room for one record, to be written in place. FULL if there is none."""
    bell_fd: int
    """The bell of sleeping readers, or the directory of FIFOs. To be replaced when there is a new one."""
    fifo: int
    """The number in its FIFO's name: at first the publisher's, which records go on to have when this is replaced."""
    @property
    def due(self) -> bool: ...
    def turned(self) -> None: ...
    def close(self) -> None: ...

@final
class Reservation:
    """A writable buffer in the log, not yet visible to anybody."""

    def commit(self) -> int:
        """Make it visible, ring. The sequence number. BufferError while views on it live."""
    def abandon(self) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __release_buffer__(self, view: memoryview, /) -> None: ...

@final
class Cell:
    """One value of ``size`` bytes in a buffer, replaced as a whole. Holds an export of the buffer.

    InvalidOption if no such cell can be there (``offset``: a multiple of 8, within the buffer).
    """

    def __init__(self, memory: Buffer, *, offset: int, size: int) -> None: ...
    def store(self, value: Buffer, /) -> None:
        """Replace the value, by ``size`` bytes. CellBusy: another writer is at it. CellMismatch: something else lies
        there. TypeError on read-only memory, ValueError on another size."""
    def load(self) -> tuple[bytes, int]:
        """The value and its version. CellEmpty; CellBusy: overtaken time after time; CellMismatch."""
    @property
    def version(self) -> int:
        """Stores so far."""
    @property
    def writer(self) -> int:
        """The thread that is storing right now; 0: none."""
    def close(self) -> None:
        """Give the buffer back; later use raises ClosedError. Twice is fine."""
