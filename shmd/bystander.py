"""What a publisher does that waits too long: see to the dead itself, if the daemon does not.

A dead subscriber holds publishers back until its tether is taken. That is the daemon's work. If it is away or stopped,
the one who waits takes the tether itself, with the daemon's own proof of death: the roster says which process sits in
the slot.

A client keeps the roster attached for its own sake, too: so it is there for the next daemon, whatever becomes of this.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from shmd.errors import ShmdError
from shmd.roster_reader import RosterReader

if TYPE_CHECKING:
    from shmd import _core, protocol

logger = logging.getLogger("shmd.client")


class Bystander:
    """The roster, as far as a client reads it. Knows none at first."""

    def __init__(self) -> None:
        self._roster: RosterReader | None = None

    def learn(self, welcome: protocol.Welcome) -> None:
        """Attach the daemon's roster now: without the daemon nobody could tell where it is."""
        self.close()
        try:
            roster = RosterReader(welcome.roster_id)
        except ShmdError as error:
            logger.info("without the daemon, nobody here will know who is dead: %s", error)
            return
        if roster.header.instance_id == welcome.instance_id:
            self._roster = roster
        else:
            roster.close()

    def free_dead(self, log: _core.Log, topic_id: bytes) -> bool:
        """Take the tether of the slowest subscriber if its process is proven dead. Whether that was so."""
        slowest = log.slowest()
        if self._roster is None or slowest is None or not self._roster.proves_dead(topic_id, *slowest):
            return False
        logger.warning("topic %r: the subscriber in slot %d is dead, and no longer waited for", log.name, slowest[0])
        return log.slot_bury(*slowest)

    def bury_dead(self, log: _core.Log, topic_id: bytes) -> None:
        """Have subscribers whose process is proven dead count as none. Costs a look at the roster for each there is."""
        roster, live = self._roster, log.next_live(0)
        while roster is not None and live is not None:
            if roster.proves_dead(topic_id, *live) and log.slot_bury(*live):
                logger.warning("topic %r: the subscriber in slot %d is dead, and counts no more", log.name, live[0])
            live = log.next_live(live[0] + 1)

    def close(self) -> None:
        """Detach. Twice is fine."""
        if self._roster is not None:
            self._roster.close()
            self._roster = None
