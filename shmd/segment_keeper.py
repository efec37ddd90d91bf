"""The part of the broker that raw segments are kept by: effects of the registry that concern them, and what it is told.

Segments have owners who need not ask: any of them may be removed or changed behind the daemon's back. So the keeper
looks before each request that names one (``look_at``), and before all of them are listed, and tells the registry what
it sees; a look costs a system call of half a microsecond.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from dataclasses import asdict
from typing import TYPE_CHECKING, TypeAlias

from shmd import file_store, limits, protocol, segment_bells, segment_store, semaphore_store
from shmd.errors import RequestRefused, SegmentError, SegmentNotFound, ShmdError
from shmd.registry import ChangeSegment, CreateSegment, DestroySegment, ReportSegment
from shmd.segment_adoption import segment_row
from shmd.units import format_size

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from concurrent.futures import Executor
    from pathlib import Path

    from shmd.file_store import StoredFile
    from shmd.registry import Effect, Registry
    from shmd.roster import Roster
    from shmd.roster_writer import Intent
    from shmd.segment_store import StoredSegment

logger = logging.getLogger(__name__)

SegmentEffect: TypeAlias = CreateSegment | DestroySegment | ChangeSegment | ReportSegment


class SegmentKeeper:
    """Raw segments, by name. Belongs to the loop's thread, as the broker does."""

    def __init__(
        self,
        registry: Registry,
        roster: Roster,
        perform: Callable[[list[Effect]], None],
        answer: Callable[[int, protocol.Reply], None],
        state_dir: Path,
        fifo_root: Path,
    ) -> None:
        """``perform`` performs the registry's effects, ``answer`` sends a client its reply. Files are made in
        ``state_dir``, FIFOs in ``fifo_root``.
        """
        self._state_dir = state_dir
        self._fifo_root = fifo_root
        self._syncing: asyncio.Task[None] | None = None
        self._registry = registry
        self._roster = roster
        self._feed = perform
        self._answer = answer
        self._stored: dict[str, StoredSegment | StoredFile] = {}

    def adopt(self, stored: dict[str, StoredSegment | StoredFile]) -> None:
        """What an earlier daemon left."""
        self._stored = stored
        self._keep_syncing()

    def descriptors(self, name: str, message: protocol.Outbound) -> tuple[int, ...]:
        """What goes with ``message``, which is a grant of the segment, or a resumed one."""
        stored = self._stored[name]
        if isinstance(message, protocol.SegmentGranted):
            return stored.descriptors(readonly=message.readonly)
        return stored.bells

    def count(self) -> int:
        """How many there are."""
        return len(self._stored)

    def close(self, *, remove: bool) -> None:
        """Give everything back; with ``remove`` the segments go, too, except adopted ones."""
        if self._syncing is not None:
            self._syncing.cancel()
        while self._stored:
            stored = self._stored.popitem()[1]
            info = stored.info
            if remove and not info.adopted:
                self._roster.begin_segment_removal(info.segment_id)
            stored.close(remove=remove and not info.adopted)
            if remove or (info.lifetime == "attached" and stored.look() is None):
                if semaphore_store.is_ours(info):
                    semaphore_store.remove(info.sem_id, info.sem_key)
                segment_bells.remove(info)
                self._roster.forget_segment(info.segment_id)

    def look_at(self, message: protocol.Request) -> None:
        """Tell the registry how the segment is that ``message`` is about."""
        if isinstance(message, protocol.ListSegments):
            for name in list(self._stored):
                self._look(name)
        elif getattr(message, "segment", "") in self._stored:
            self._look(getattr(message, "segment", ""))

    def _look(self, name: str) -> None:
        stored = self._stored[name]
        info, found = stored.info, stored.look()
        if found is None:
            logger.warning("segment %s is gone: somebody removed it (id %d, key %#x)", name, info.id, info.key)
            self._feed(self._registry.segment_lost(name))
        elif (found.uid, found.gid, found.mode) != (info.uid, info.gid, info.mode):
            logger.info("segment %s now has uid %d, gid %d, mode %04o", name, found.uid, found.gid, found.mode)
            stored.seen(found.uid, found.gid, found.mode)
            self._feed(self._registry.segment_seen(name, found.uid, found.gid, found.mode))

    # --- files ---

    def _keep_syncing(self) -> None:
        """As long as there is a file to be synced at intervals, and no longer: an idle daemon sleeps."""
        if self._syncing is None and self._to_sync():
            self._syncing = asyncio.create_task(self._sync_at_intervals())

    def _to_sync(self) -> list[StoredFile]:
        return [
            stored
            for stored in self._stored.values()
            if isinstance(stored, file_store.StoredFile) and stored.info.sync == "interval"
        ]

    async def _sync_at_intervals(self) -> None:
        while files := self._to_sync():
            for stored in files:
                await asyncio.to_thread(stored.sync)
            await asyncio.sleep(limits.FILE_SYNC_INTERVAL_S)
        self._syncing = None

    # --- effects ---

    def perform(self, effect: DestroySegment | ChangeSegment | ReportSegment) -> None:
        """All but a creation, which takes its time: ``create``."""
        match effect:
            case DestroySegment(name):
                self._destroy(name)
            case ChangeSegment(client, request_id):
                self._answer(client, self._change(effect, request_id))
            case ReportSegment(client, request_id, name):
                self._answer(client, self._report(name, request_id))

    def _destroy(self, name: str) -> None:
        stored = self._stored.pop(name)
        self._roster.begin_segment_removal(stored.info.segment_id)
        stored.close(remove=True)
        self._roster.forget_segment(stored.info.segment_id)

    def _change(self, effect: ChangeSegment, request_id: int) -> protocol.Reply:
        try:
            self._stored[effect.segment].change(effect.uid, effect.gid, effect.mode)
        except SegmentError as error:
            return protocol.refusal(request_id, error)
        self._feed(self._registry.segment_seen(effect.segment, effect.uid, effect.gid, effect.mode))
        return protocol.Done(id=request_id)

    def _report(self, name: str, request_id: int) -> protocol.Reply:
        stored = self._stored[name]
        found = stored.look()
        if found is None:
            return protocol.refusal(request_id, SegmentNotFound(f"segment {name!r} is gone", "somebody removed it"))
        counters = asdict(found)
        del counters["rss_bytes"]
        return protocol.SegmentStatReply(
            id=request_id, segment=stored.info, counters=protocol.SegmentCounters(**counters)
        )

    async def create(
        self, effect: CreateSegment, loop: asyncio.AbstractEventLoop, executor: Executor, stop: threading.Event
    ) -> None:
        """Make the segment in a worker thread, note it, and tell the registry how it went."""
        name = effect.segment
        try:
            with self._roster.intent() as intent:
                make = functools.partial(self._make, effect, stop, intent, self._known_ids())
                stored = await loop.run_in_executor(executor, make)
                self._note(stored)
        except ShmdError as error:
            logger.warning("segment %s cannot be made: %s", name, error)
            self._feed(self._registry.segment_failed(name, error))
        except Exception:
            logger.exception("segment %s cannot be made", name)
            refusal = RequestRefused("the daemon failed to make the segment", "its log says why")
            self._feed(self._registry.segment_failed(name, refusal))
        else:
            done = "adopted" if stored.info.adopted else "made"
            logger.info("segment %s of %s is %s", name, format_size(stored.info.size_bytes), done)
            self._stored[name] = stored
            self._keep_syncing()
            self._feed(self._registry.segment_created(stored.info))

    def _make(
        self, effect: CreateSegment, stop: threading.Event, intent: Intent, known_ids: set[int]
    ) -> StoredSegment | StoredFile:
        """For a worker thread."""
        name, settings, declared_by = effect.segment, effect.settings, effect.declared_by
        root = self._fifo_root
        if settings.adopt and (stored := segment_store.adopt(name, settings, declared_by, known_ids, intent, root)):
            return stored
        if not settings.create:
            raise SegmentNotFound(
                f"there is no segment {name!r}, and none with key {settings.key or 0:#x} to be adopted",
                "create it first",
            )
        if settings.backing == "file":
            return file_store.create(name, settings, declared_by, self._state_dir, intent, root)
        return segment_store.create(name, settings, declared_by, stop, intent, root)

    def _known_ids(self) -> set[int]:
        """Of segments that are shmd's already."""
        topics = {shmid for row in self._roster.topics() for shmid in (row.log_id, row.ctl_id)}
        return topics | {row.id for row in self._roster.segments()} | {self._roster.id}

    def _note(self, stored: StoredSegment | StoredFile) -> None:
        try:
            self._roster.note_segment(segment_row(stored.info))
        except ShmdError:
            stored.close(remove=not stored.info.adopted)
            raise
