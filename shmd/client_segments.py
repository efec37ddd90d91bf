"""What a client offers about raw segments; ``Client`` inherits it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from shmd import names, protocol
from shmd.errors import SegmentNotFound
from shmd.opener import Opener
from shmd.raw_segment import Segment
from shmd.segment_options import make_segment_options
from shmd.segment_seat import SegmentSeat
from shmd.sysv import SegmentStat

if TYPE_CHECKING:
    import os

    from shmd.hub import Hub
    from shmd.protocol import Backing, Lifetime, Notifier, SegmentInfo, SegmentOptions, Sync


class ClientSegments:
    """The part of a client that raw segments are opened and looked after by."""

    _hub: Hub

    def segment(
        self,
        name: str,
        *,
        size: int | str | None = None,
        create: bool = True,
        exclusive: bool = False,
        mode: int | None = None,
        key: int | None = None,
        ftok: tuple[str | os.PathLike[str], int | str] | None = None,
        adopt: bool = False,
        readonly: bool = False,
        backing: Backing | None = None,
        sync: Sync | None = None,
        lifetime: Lifetime | None = None,
        notifier: Notifier | None = None,
    ) -> Opener[Segment]:
        """Open a raw System V segment, all bytes of which are yours; have it made if there is none of this name.

        ``size`` is in bytes or like ``"64KiB"``, and needed where it is created; one that exists may be larger.
        ``create=False`` opens only what exists, ``exclusive=True`` only what did not (as ``IPC_CREAT | IPC_EXCL``).
        ``mode`` are its permission bits: by default 0600 where its creator is the daemon's own user, else 0660 with the
        creator's group. It gets the System V ``key`` (as ipcs prints it, or C's negative one), or the one that
        ``ftok(path, id)`` makes in C of an id from 1 to 255, or a random one.
        ``adopt=True`` takes over the segment that has this key though shmd did not make it; for its owner, its creator
        and root. ``readonly=True`` needs the read bit only. ``lifetime="attached"`` gives it no key and lets it go with
        the last one who has it open; ``"os"`` (the default) keeps it until it is removed.

        ``backing="file"`` keeps the bytes in a file of the daemon's instead, mapped in the same way: it survives a
        reboot, and has neither key nor id. What a power failure may cost is a matter of ``sync``: ``"none"`` (the
        default) the last half minute or so, ``"interval"`` the last second, ``"always"`` nothing of which anybody was
        notified. The death of any process, the daemon's too, costs nothing.

        ``notifier="fifo"`` gives it a FIFO for its notify bell, which C programs and shells share: each ``notify`` then
        ends one ``wait``; with ``"eventfd"`` (the default) it wakes everybody who waits. None means: as it is, or the
        default.

        Raises ``SegmentNotFound``, ``SegmentExists`` (of this name, or with this key), ``SegmentMismatch`` (exists with
        other options; names both values), ``SegmentInvalid`` (larger than what exists, or no size),
        ``PermissionDenied``, ``SegmentLimit``, ``SegmentNoMemory``, ``LimitExceeded``, ``InvalidName``,
        ``InvalidOption``, ``SegmentAccessDenied``, ``Disconnected``. Cancelled, nothing stays open, but it may have
        been made.
        """
        options = make_segment_options(
            size=size,
            mode=mode,
            key=key,
            ftok=ftok,
            adopt=adopt,
            backing=backing,
            sync=sync,
            lifetime=lifetime,
            notifier=notifier,
        )
        names.check_segment(name)
        opening = self._open_segment(name, options, create=create, exclusive=exclusive, readonly=readonly)
        return Opener(opening, "client.segment(...)", "segment")

    async def _open_segment(
        self, name: str, options: SegmentOptions, *, create: bool, exclusive: bool, readonly: bool
    ) -> Segment:
        hub = self._hub
        message = protocol.OpenSegment(
            id=self._next_id(), segment=name, options=options, create=create, exclusive=exclusive, readonly=readonly
        )
        granted, bells = await hub.link.open(message, protocol.SegmentGranted)
        with hub.taking(granted, bells):
            seat = SegmentSeat(hub, granted, bells)
        return Segment(hub, seat)

    async def segments(self, pattern: str = ">") -> list[SegmentInfo]:
        """All raw segments that match ``pattern`` and that this user may read, in the order of their names."""
        names.check_pattern(pattern)
        found: list[SegmentInfo] = []
        after: str | None = ""
        while after is not None:
            message = protocol.ListSegments(id=self._next_id(), pattern=pattern, after=after)
            page = await self._hub.link.request(message, protocol.SegmentList)
            found.extend(page.segments)
            after = page.next
        return found

    async def segment_stat(self, name: str) -> SegmentStat | None:
        """What the kernel knows about a segment, without opening it; None if there is none of this name.

        Raises ``PermissionDenied``, ``InvalidName``, ``Disconnected``.
        """
        message = protocol.StatSegment(id=self._next_id(), segment=names.check_segment(name))
        try:
            reply = await self._hub.link.request(message, protocol.SegmentStatReply)
        except SegmentNotFound:
            return None
        return SegmentStat(**msgspec.structs.asdict(reply.counters))

    async def set_segment(
        self, name: str, *, uid: int | None = None, gid: int | None = None, mode: int | None = None
    ) -> None:
        """Give a segment another owner, group or mode, without opening it; as ``Segment.set``."""
        message = protocol.SetSegment(
            id=self._next_id(), segment=names.check_segment(name), uid=uid, gid=gid, mode=mode
        )
        await self._hub.link.request(message, protocol.Done)

    async def remove_segment(self, name: str) -> None:
        """Remove a segment, without opening it; as ``Segment.remove``."""
        message = protocol.RemoveSegment(id=self._next_id(), segment=names.check_segment(name))
        await self._hub.link.request(message, protocol.Done)

    def _next_id(self) -> int:
        self._hub.check_open()
        return self._hub.link.next_id()
