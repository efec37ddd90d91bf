"""``shmd segment``: raw System V segments by name; what ``ipcs``, ``ipcmk`` and ``ipcrm`` do by number, and more.

| module | commands                                                        |
|--------|-----------------------------------------------------------------|
| manage | `create`, `ls`, `stat`, `set`, `rm`: what there is, and whose   |
| memory | `read`, `write`: the bytes                                      |
| sync   | `lock`, `notify`, `wait`: taking turns, and waking each other   |
"""

from __future__ import annotations

import click

from shmd.cli.segment.manage import create, ls, rm, set_, stat
from shmd.cli.segment.memory import read, write
from shmd.cli.segment.sync import lock, notify, wait


@click.group()
def segment() -> None:
    """Raw System V segments, by name: create, list, look into, change, lock and remove them."""


for _command in (create, ls, stat, set_, read, write, lock, notify, wait, rm):
    segment.add_command(_command)
