"""``shmd segment``: raw System V segments by name; what ``ipcs``, ``ipcmk`` and ``ipcrm`` do by number, and more.

| module | commands                                                        |
|--------|-----------------------------------------------------------------|
| manage | `create`, `ls`, `stat`, `set`, `rm`: what there is, and whose   |
| memory | `read`, `write`: the bytes                                      |
| sync   | `lock`, `notify`, `wait`: taking turns, and waking each other   |
"""

from __future__ import annotations

from typing import Final

import click

from shmd.cli.group import Commands

_COMMANDS: Final = {
    "create": ("shmd.cli.segment.manage:create", "Create a segment, or have the one of that name, as ipcmk -M."),
    "ls": ("shmd.cli.segment.manage:ls", "List segments, as ipcs -m."),
    "stat": ("shmd.cli.segment.manage:stat", "Show all that the kernel knows of a segment, as ipcs -m -i."),
    "set": ("shmd.cli.segment.manage:set_", "Give a segment another owner, group or mode."),
    "read": ("shmd.cli.segment.memory:read", "Print a segment's bytes, as hexdump -C."),
    "write": ("shmd.cli.segment.memory:write", "Copy standard input into a segment."),
    "lock": ("shmd.cli.segment.sync:lock", "Run a command while holding a segment's lock, as flock."),
    "notify": ("shmd.cli.segment.sync:notify", "Wake those who wait for a segment."),
    "wait": ("shmd.cli.segment.sync:wait", "Wait until somebody notifies a segment."),
    "rm": ("shmd.cli.segment.manage:rm", "Remove segments, as ipcrm -m."),
}


@click.group(cls=Commands, table=_COMMANDS)
def segment() -> None:
    """Raw System V segments, by name: create, list, look into, change, lock and remove them."""
