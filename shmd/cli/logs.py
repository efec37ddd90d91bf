"""What the package logs, on standard error: as lines for people, or for the journal with their priority.

Log lines quote peers, so they are ``printable``, and a message is one line whatever it quotes. Under systemd standard
error is the journal's; then each line begins with its priority, as sd-daemon(3) has it, for ``journalctl -p``.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Final

from shmd.cli.output import is_journal
from shmd.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

_PRIORITIES: Final = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_PRIORITY_OF_DEBUG: Final = 7


class Formatter(logging.Formatter):
    """One record, its traceback in lines of its own."""

    def __init__(self, *, journal: bool) -> None:
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{_priority(record.levelno)}>" if self._journal else "shmd: "
        return "\n".join(prefix + line for line in self._lines(record))

    def _lines(self, record: logging.LogRecord) -> Iterator[str]:
        message = record.getMessage()
        # Only our own messages quote peers; asyncio's have several lines.
        yield from [printable(message)] if record.name.startswith("shmd") else map(printable, message.splitlines())
        if record.exc_info:
            yield from map(printable, self.formatException(record.exc_info).splitlines())


def to_stderr(level: int = logging.WARNING) -> None:
    """Log there from now on, whatever ``level`` says and above."""
    handler: logging.Handler = logging.NullHandler()
    if sys.stderr is not None:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(Formatter(journal=is_journal()))
    logging.basicConfig(handlers=[handler], level=level, force=True)


def _priority(level: int) -> int:
    return next((priority for lowest, priority in _PRIORITIES if level >= lowest), _PRIORITY_OF_DEBUG)
