"""Raw segments: what each request and event about them does. The two rules of ``machine`` hold here, too.

A segment's bytes are its users', and the registry knows only that it exists, whose it is, and who has it open. It can
change or vanish without anybody asking (``ipcrm``, ``shmctl``): the daemon looks before each request that names it, and
tells by ``seen`` and ``lost``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from shmd import limits, names, policy, protocol, segment_policy
from shmd.errors import SegmentExists, SegmentNotFound
from shmd.registry import quotas
from shmd.registry.effects import ChangeSegment, CreateSegment, DestroySegment, ForgetParticipant, ReportSegment
from shmd.registry.entities import Creation, SegmentUse

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shmd.protocol import SegmentInfo
    from shmd.registry.entities import Client, Key
    from shmd.registry.state import State
    from shmd.segment_policy import SegmentSettings


@dataclass(slots=True)
class Segment:
    """One that exists."""

    info: SegmentInfo
    users: dict[Key, SegmentUse] = field(default_factory=dict)

    @property
    def charge_bytes(self) -> int:
        """What it takes of the daemon's bytes of memory; an adopted one was somebody else's doing."""
        return 0 if self.info.adopted or self.info.backing == "file" else self.info.size_bytes


class Segments:
    """Those that exist and those in the making, by name."""

    def __init__(self) -> None:
        self.existing: dict[str, Segment] = {}
        self.creations: dict[str, Creation[SegmentSettings]] = {}


# --- requests ---------------------------------------------------------------------------------------------------------


def open_segment(state: State, client: Client, message: protocol.OpenSegment) -> None:
    state.check_handle_quota(client)
    segment = _ensure(state, client, message)
    if segment is None:
        return
    state.check_participant_quota()
    enter(state, segment, message.id, SegmentUse(message.segment, client))
    state.note(client, message.id, segment.info.segment_id, "segment")
    granted = protocol.SegmentGranted(
        id=message.id,
        segment=segment.info,
        readonly=message.readonly,
        fds=limits.BELLS_PER_GRANT + (segment.info.backing == "file"),
    )
    state.send(client, granted, segment=message.segment)


def _ensure(state: State, client: Client, message: protocol.OpenSegment) -> Segment | None:
    """The segment; None if it has to be made first, for which the request waits from now on."""
    name, options, segments = message.segment, message.options, state.segments
    if segment := segments.existing.get(name):
        if message.exclusive:
            raise SegmentExists(f"there is a segment {name!r} already", "open it without exclusive=True")
        segment_policy.check_may(client.credentials, segment.info, _wanted(message))
        segment_policy.check_match(options, segment.info)
        return segment
    if not (message.create or options.adopt):
        raise SegmentNotFound(f"there is no segment {name!r}", "create it first")
    daemon = state.identity.credentials
    settings = segment_policy.resolve(options, client.credentials, daemon, create=message.create)
    ownership = policy.Ownership(settings.uid, settings.gid, settings.mode, daemon.uid, daemon.gid)
    policy.check_creator(client.credentials, ownership, _wanted(message), "segment")
    quotas.check_segment(state, settings)
    creation = Creation(name, settings, (client.number, message.id), client.credentials.uid)
    segments.creations[name] = creation
    # Once it is made, it is there for the one who had it made, too, who wanted to be the first, and is.
    state.enqueue(creation, client, msgspec.structs.replace(message, exclusive=False))
    state.effects.append(CreateSegment(name, settings, client.credentials))
    return None


def _wanted(message: protocol.OpenSegment) -> int:
    return policy.READ if message.readonly else policy.READ | policy.WRITE


def list_segments(state: State, client: Client, message: protocol.ListSegments) -> None:
    names.check_pattern(message.pattern)
    infos = [
        segment.info
        for name, segment in sorted(state.segments.existing.items())
        if names.matches(message.pattern, name)
        and policy.may(client.credentials, segment_policy.ownership(segment.info), policy.READ)
    ]
    rest = [info for info in infos if info.name > message.after]
    page = tuple(rest[: limits.PAGE_SEGMENTS_MAX])
    following = page[-1].name if len(rest) > len(page) else None
    state.send(client, protocol.SegmentList(id=message.id, segments=page, next=following))


def stat_segment(state: State, client: Client, message: protocol.StatSegment) -> None:
    segment = _find(state, message.segment)
    segment_policy.check_may(client.credentials, segment.info, policy.READ)
    state.effects.append(ReportSegment(client.number, message.id, message.segment))


def set_segment(state: State, client: Client, message: protocol.SetSegment) -> None:
    info = _find(state, message.segment).info
    segment_policy.check_control(client.credentials, info, state.identity.credentials, "change")
    if message.mode is not None:
        policy.check_mode(message.mode)
    uid = info.uid if message.uid is None else message.uid
    gid = info.gid if message.gid is None else message.gid
    mode = info.mode if message.mode is None else message.mode
    state.effects.append(ChangeSegment(client.number, message.id, message.segment, uid, gid, mode))


def remove_segment(state: State, client: Client, message: protocol.RemoveSegment) -> None:
    segment = _find(state, message.segment)
    if message.segment_id not in (None, segment.info.segment_id):
        raise SegmentNotFound(f"segment {message.segment!r} is another by now", "the one that was meant is removed")
    segment_policy.check_control(client.credentials, segment.info, state.identity.credentials, "remove")
    remove(state, segment)
    state.send(client, protocol.Done(id=message.id))


def _find(state: State, name: str) -> Segment:
    segment = state.segments.existing.get(name)
    if segment is None:
        raise SegmentNotFound(f"there is no segment {name!r}", "see which there are: shmd segment ls")
    return segment


# --- events -----------------------------------------------------------------------------------------------------------


def adopt(state: State, infos: Iterable[SegmentInfo]) -> None:
    """Those that an earlier daemon noted, and that are there."""
    for info in infos:
        state.segments.existing[info.name] = Segment(info)


def created(state: State, info: SegmentInfo) -> Creation[SegmentSettings]:
    """``CreateSegment`` succeeded. Its creation, whose waiting requests are to be tried next, then ``desert``."""
    state.segments.existing[info.name] = Segment(info)
    return state.segments.creations.pop(info.name)


def seen(state: State, name: str, uid: int, gid: int, mode: int) -> None:
    """These are the segment's owner, group and mode now, whoever gave it them. One that the next effect destroys is
    unknown here already.
    """
    if segment := state.segments.existing.get(name):
        segment.info = msgspec.structs.replace(segment.info, uid=uid, gid=gid, mode=mode)


def desert(state: State, name: str) -> None:
    """It may have no user (any more): one of lifetime `attached` then goes."""
    segment = state.segments.existing.get(name)
    if segment is not None and segment.info.lifetime == "attached" and not segment.users:
        remove(state, segment)


def remove(state: State, segment: Segment) -> None:
    """Forget it and everybody's use of it, and tell its users. What is still there of it, the daemon removes."""
    name, segment_id = segment.info.name, segment.info.segment_id
    del state.segments.existing[name]
    state.effects.append(DestroySegment(name))
    for (number, request_id), use in segment.users.items():
        del use.client.handles[request_id]
        state.participants -= 1
        state.effects.append(ForgetParticipant(number, request_id, segment_id))
    for number in sorted({number for number, _ in segment.users} & state.clients.keys()):
        state.send(state.clients[number], protocol.SegmentGone(segment=name, segment_id=segment_id))
    for use in segment.users.values():
        state.forget_empty(use.client)


# --- users ------------------------------------------------------------------------------------------------------------


def enter(state: State, segment: Segment, request_id: int, use: SegmentUse) -> None:
    """``use.client`` has it open from now on."""
    use.client.handles[request_id] = use
    segment.users[use.client.number, request_id] = use
    state.participants += 1


def leave(state: State, key: Key, use: SegmentUse) -> None:
    """The other end of ``enter``; the client has given its handle up."""
    segment = state.segments.existing[use.segment]
    del segment.users[key]
    state.participants -= 1
    state.effects.append(ForgetParticipant(*key, segment.info.segment_id))
    desert(state, use.segment)
