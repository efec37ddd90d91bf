"""Every limit of shmd, with its reason. Nothing in shmd grows without one of these.

Sizes are bytes (``_bytes``), times seconds (``_s``), the rest are counts.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

# --- names ------------------------------------------------------------------------------------------------------------
TOPIC_NAME_BYTES_MAX: Final = 255
"""A topic's name is kept in the log's header page, in 256 bytes with its terminator."""
CLIENT_NAME_BYTES_MAX: Final = 64
"""A client's name is shown in ``stat`` and log lines: a line's width, no more."""
INSTANCE_NAME_BYTES_MAX: Final = 32
"""Part of a socket path, which the kernel limits to 108 bytes in all."""

# --- the log ----------------------------------------------------------------------------------------------------------
TOPIC_SIZE_BYTES_DEFAULT: Final = 1 * MIB
"""About 12,000 small records: a burst, not an archive."""
TOPIC_SIZE_BYTES_MIN: Final = 4 * KIB
"""One page: a segment cannot be smaller."""
TOPIC_SIZE_BYTES_MAX: Final = 8 * GIB
"""A cursor word keeps 32 bits of position in units of 8 bytes, a window of 32 GiB; a quarter of it leaves no doubt."""
RECORD_SIZE_DIVISOR: Final = 4
"""A record or batch is at most capacity / 4, so that the last committed record survives any append."""
SUBSCRIBERS_PER_TOPIC_MAX: Final = 1024
"""Slots in a ctl segment: 64 KiB, scanned by a publisher that looks for room."""

TOPIC_TIMEOUT_S_MAX: Final = 10 * 365 * 86_400.0
"""``idle_ttl`` and ``stall_timeout``: ten years, which any clock here can count. To say "for ever", leave them out."""

# --- reading and publishing -------------------------------------------------------------------------------------------
READ_BATCH_BYTES: Final = 64 * KIB
"""How much a subscriber copies out at a time: fits the L2 cache, costs about 5 µs."""
YIELD_RECORDS: Final = 256
"""Ready records a task may take or publish before the loop gets a turn."""
YIELD_S: Final = 0.001
"""The same as time: a task that only reads ready records holds the loop no longer."""
GET_MANY_MAX: Final = 65_536
"""Records one ``get_many`` may return: a list of this length is already 10 MiB."""
PUBLISH_MANY_MAX: Final = 65_536
"""Records one ``publish_many`` may take, under one lock."""
SEEK_STEPS: Final = 65_536
"""Records one seek looks at before the loop gets a turn: about a millisecond."""
LOCK_BACKOFF_MIN_S: Final = 0.000_05
LOCK_BACKOFF_MAX_S: Final = 0.005
"""A busy lock is held for nanoseconds, or by a process that the scheduler took off its core for milliseconds."""
LOCK_TURNS: Final = 4
"""Turns of the loop after which a busy lock is tried again; only then come the pauses."""
RECHECK_DISCONNECTED_MIN_S: Final = 0.01
RECHECK_DISCONNECTED_MAX_S: Final = 1.0
RECHECK_DISCONNECTED_GROWTH: Final = 1.125
"""Without a daemon a bell may be lost: a sleeper looks again by itself, first soon, then less often. Growing by an
eighth, the next look is due after an eighth of the time for which nothing came: a lost bell makes a pause that much
longer, and 40 looks of 20 µs come before there is one in a second. Daemon or not, a publisher that waits for room looks
for dead subscribers at the same times."""
STALL_REPORT_S: Final = 1.0
"""A publisher that has waited so long tells the daemon, then again every so often: a live reader takes milliseconds."""
RECHECK_HOSTILE_S: Final = 1.0
"""Where participants have different uids a sleeper looks again this often, since a hostile one could spoil bells."""
LATEST_TOPICS_MAX: Final = 256
"""Logs a client keeps attached for ``latest``; each costs address space and one of a process's 65,530 mappings."""

# --- FIFOs ------------------------------------------------------------------------------------------------------------
FIFO_BYTES: Final = 4 * KIB
"""A FIFO's buffer, and how much is taken out at a time: one page, the least there is, for what only says "wake up"."""
FIFO_DIR_BYTES_MAX: Final = 255
"""The path of a topic's FIFOs is part of its description, of which a page of a list has 64."""
NOTIFY_COUNT_MAX: Final = 4 * KIB
"""Bytes that go into a segment's FIFO at a time: PIPE_BUF, the most that the kernel takes as a whole or not at all."""
RECHECK_UNHEARD_S: Final = 0.1
"""Where more publishers wait for room than have places in the ctl (256), the others look again this often."""
# --- segments ---------------------------------------------------------------------------------------------------------
CELL_SIZE_BYTES_MAX: Final = 1 * MIB
"""A value is copied in one go, a tenth of a millisecond, and up to 64 times where a hostile writer keeps overtaking."""
SEGMENT_LOCK_RECHECK_MIN_S: Final = 0.000_5
SEGMENT_LOCK_RECHECK_MAX_S: Final = 0.01
"""An owner written in C rings no bell, nor does the kernel for one that died: who waits looks again by itself, soon,
then less often. A look costs about 20 µs of CPU with its timer, so waiting costs 0.2 % of a core at most."""

# --- the control socket -----------------------------------------------------------------------------------------------
MESSAGE_BYTES_MAX: Final = 64 * KIB
"""One packet. Well below the 208 KiB that a socket buffer takes; lists are paged to fit."""
BELLS_PER_GRANT: Final = 2
"""A record bell and a space bell; or a notify bell and a lock bell."""
DESCRIPTORS_PER_MESSAGE_MAX: Final = 3
"""The bells, and the file of a segment that is one."""
PAGE_SEGMENTS_MAX: Final = 32
"""Entries in one page of segments: each may have the path of a file."""
PAGE_ENTRIES_MAX: Final = 64
"""Entries of one page of a list: 64 × about 600 bytes fit a message."""
PACKETS_PER_WAKE: Final = 64
"""Packets taken from one peer, or connections from a listener, before the loop serves the others."""
LISTEN_BACKLOG: Final = 4096
"""Connections the kernel keeps for the daemon while it is busy; a thousand clients may start at once."""
DESCRIPTOR_PACKETS_UNREAD_MAX: Final = 8
"""Packets with descriptors that a peer may leave unread; those in flight count against the sender's own limit."""
DESCRIPTOR_RETRY_S: Final = 0.001
"""The kernel does not tell when a peer has read; a sender of descriptors looks again after this."""
SEND_QUEUE_MESSAGES_MAX: Final = 4096
"""Messages waiting for one client that does not read; more, and it is hung up on."""
REQUESTS_PER_CLIENT_MAX: Final = 256
"""Requests under way (unanswered) for one client."""
PROTOCOL_ERRORS_MAX: Final = 8
"""Protocol errors before a peer is hung up on."""
HELLO_TIMEOUT_S: Final = 10.0
"""A peer that connects and says nothing costs a descriptor; after this it is hung up on."""
RECONNECT_MIN_S: Final = 0.01
"""A daemon that restarts listens again within tens of milliseconds."""
RECONNECT_MAX_S: Final = 1.0
"""Pauses double up to this, each drawn at random from 0 to its length: a thousand clients do not come back at once."""
CLIENT_EVENTS_MAX: Final = 64
"""Events of a connection that wait for a program to read them: half an hour of a daemon that crashes each minute."""
APPEARANCE_PAUSE_MAX_S: Final = 0.1
"""``connect(wait=True)`` looks for its daemon so often: an answer that feels immediate, for 0.1 % of a core."""
SETTLE_S: Final = 2 * RECONNECT_MAX_S
"""After its own return, or its first hello to a daemon to which others are on their way back, a client looks by itself
for so long: others draw longer pauses before they return."""
RESUME_S: Final = 10.0
"""A client that hung up and has not resumed for so long no longer holds publishers back: ten times the longest pause
between two attempts to reconnect. It keeps its slots until its process is proven dead."""
REQUEST_TIMEOUT_S: Final = 30.0
"""A daemon that does not answer for so long is stuck: creating the largest topic takes a few seconds."""
CONNECT_TIMEOUT_S: Final = 5.0
"""Connecting fails fast; a local socket answers in microseconds or not at all."""

# --- the daemon -------------------------------------------------------------------------------------------------------
CLIENTS_MAX: Final = 16_384
"""Connections of one daemon; each costs one descriptor and about 10 KiB."""
CLIENTS_PER_UID_MAX: Final = 8_192
"""So that one user cannot take all of them."""
TOPICS_MAX: Final = 2_000
"""Two segments each; a System V namespace holds 4,096 by default (SHMMNI)."""
SEGMENTS_MAX: Final = 1_024
"""Raw segments: a quarter of the 4,096 that a System V namespace holds by default (SHMMNI); half a MiB of roster."""
FILE_BYTES_DEFAULT: Final = 16 * GIB
"""All segments of one daemon that are files, together, unless configured: a disk is larger than memory, but shared."""
FILE_SYNC_INTERVAL_S: Final = 1.0
"""How often the daemon has files with ``sync="interval"`` written to the disk: what a power failure may cost."""
STATE_DIR_BYTES_MAX: Final = 200
"""Of the state directory's path: a file's path goes into messages, of which a page has many."""
PARTICIPANTS_MAX: Final = 16_384
"""Publishers, subscribers and users of segments, all together: rows of the roster, 3 MiB of address space, touched as
needed.
"""
STORED_DESCRIPTORS_MAX: Final = 2 * TOPICS_MAX
"""Bells that the service manager keeps, two of each topic: FileDescriptorStoreMax= in the units says the same."""
STORE_MESSAGES_MAX: Final = 2 * STORED_DESCRIPTORS_MAX
"""On their way to the service manager: every bell once, and every one removed. More, and bells are not stored."""
INTENTS_MAX: Final = 64
"""Topics and segments in the making at one time: more wait for their turn."""
ROSTER_CANDIDATES: Final = 8
"""Keys that an instance's roster may have: one is enough unless strangers happen to hold segments with them."""
ROSTER_READ_ATTEMPTS: Final = 16
"""Times a reader copies a row that changes under its eyes; the daemon changes one in a microsecond."""
HANDLES_PER_CLIENT_MAX: Final = 4_096
"""Publishers, subscribers and watches of one client."""
TOTAL_BYTES_DEFAULT: Final = 4 * GIB
"""All segments of one daemon together, unless configured: pre-faulted memory is taken from everybody else."""
ACCEPT_PAUSE_S: Final = 0.1
"""Pause after accept() failed for want of descriptors or memory: overload is not a crash."""
PREFAULT_CHUNK_BYTES: Final = 16 * MIB
"""Pre-faulting goes in steps of this size, so that a stop request is heard in between."""
MEMORY_SPARED_BYTES: Final = 8 * MIB
"""What pre-faulting leaves of the memory that the daemon may take: for its clients and messages until the next look."""
MEMORY_CLAIM_MIN_BYTES: Final = 1 * MIB
"""Less than this is touched without another look: what all threads do so at a time fits into what is spared."""
KEY_ATTEMPTS_MAX: Final = 64
"""Random System V keys tried before giving up; two in a row taken is already a one in a million event."""
