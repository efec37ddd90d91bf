"""Messages about the connection itself, and about whatever was opened through it."""

from __future__ import annotations

from typing import Annotated

import msgspec

from shmd.messages.words import U32, U63, ClientName, Descriptors, Id16, Message, RequestId


class Hello(Message, frozen=True, kw_only=True, tag="hello"):
    id: RequestId
    major: U32
    minor: U32
    name: ClientName = ""
    ipc_namespace: U63 = 0
    pid_namespace: U63 = 0
    resume: U63 = 0
    """The number that this process's lost connection had; 0: begin anew."""


class Welcome(Message, frozen=True, kw_only=True, tag="welcome"):
    id: RequestId
    major: U32
    minor: U32
    client: U63
    instance: str
    instance_id: Id16
    ipc_namespace: U63
    pid: int
    roster_id: U32
    """Id of the segment that says who takes part in what, and keeps that for the next daemon as long as somebody has it
    attached: to be attached, read-only, before anything is opened."""
    resumed: bool = False
    """``client`` is the number asked for, with all publishers and subscribers that it still holds."""
    settling: bool = False
    """Others have lost their connection and not resumed yet: until they have, they ring the bells that they know."""


class Done(Message, frozen=True, kw_only=True, tag="done"):
    id: RequestId


class Refused(Message, frozen=True, kw_only=True, tag="refused"):
    """``code`` is that of a class in ``errors``; id 0 where the request could not be read."""

    id: Annotated[int, msgspec.Meta(ge=0, le=2**53)]
    code: str
    message: str
    hint: str | None = None


class Close(Message, frozen=True, kw_only=True, tag="close"):
    """Give back what ``handle`` stands for. Reply: ``Done``, also when there is no such handle (any more)."""

    id: RequestId
    handle: RequestId


class Cancel(Message, frozen=True, kw_only=True, tag="cancel"):
    """Forget the request ``target``: no reply to it will come if none was sent, and what it opened is closed.

    Has no reply itself.
    """

    id: RequestId
    target: RequestId


class Resume(Message, frozen=True, kw_only=True, tag="resume"):
    """The bells, as they are now, of a publisher or subscriber that this client holds since an earlier connection.

    Reply: ``Resumed`` with two descriptors, or none where there are FIFOs instead; refused
    with ``no-such-topic`` if the handle or its topic is gone.
    """

    id: RequestId
    handle: RequestId


class Resumed(Message, frozen=True, kw_only=True, tag="resumed"):
    id: RequestId
    fds: Descriptors = 2


class Bye(Message, frozen=True, kw_only=True, tag="bye"):
    """Give everything back at once, and do not wait for this client to resume. Reply: ``Done``, then a hang-up."""

    id: RequestId


class Stop(Message, frozen=True, kw_only=True, tag="stop"):
    """End the daemon; topics stay as their lifetimes say. For its own user and root. Reply: ``Done``, and a hang-up."""

    id: RequestId
