"""Taking a seat again at a daemon that came back.

If it knows this client, the grant holds, and only the bells are new. If it does not (it could not tell that this is the
same process, or its roster was lost) the seat is opened anew. A topic or segment that is gone, or another one by its
name, means that ours was removed.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING

from shmd import limits
from shmd.errors import (
    ClosedError,
    CorruptTopic,
    Disconnected,
    NoSuchTopic,
    RequestRefused,
    SegmentError,
    SegmentNotFound,
    TopicBusy,
)

if TYPE_CHECKING:
    from shmd import protocol
    from shmd.hub import Hub
    from shmd.seat import Seat
    from shmd.session import Session

logger = logging.getLogger("shmd.client")


async def retake(hub: Hub, seat: Seat, session: Session, welcome: protocol.Welcome) -> None:
    """Have ``seat`` go on through ``session``. ``Disconnected`` and ``DaemonUnavailable`` mean: not this time."""
    try:
        if welcome.resumed and seat.client == welcome.client:
            await seat.resume(session)
        else:
            await seat.reopen(session)
            seat.client = welcome.client
    except (NoSuchTopic, SegmentNotFound):
        seat.gone()
    except TopicBusy:
        hub.start(_insist(hub, seat, session, welcome))
    except (RequestRefused, SegmentError, CorruptTopic, ClosedError) as error:
        logger.error("%s of %r cannot go on as one: %s", seat.role, seat.name, error)
        seat.fail(error)


async def _insist(hub: Hub, seat: Seat, session: Session, welcome: protocol.Welcome) -> None:
    """The daemon takes somebody else for the only publisher. It is our former self, whose death it cannot prove, or
    somebody who is about to learn that the topic is gone; meanwhile we publish on.
    """
    logger.warning("topic %r is exclusive, and the daemon takes somebody else for its publisher", seat.name)
    while session.connected and not (seat.released or seat.removed or hub.closed):
        await asyncio.sleep(random.uniform(0, limits.RECONNECT_MAX_S))  # noqa: S311 - nobody gains from guessing it
        try:
            await seat.reopen(session)
        except TopicBusy:
            continue
        except Disconnected:
            return
        except NoSuchTopic:
            seat.gone()
            return
        seat.client = welcome.client
        return
