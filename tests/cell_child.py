"""A process that stores values in a cell until it dies at a failpoint.

python -m tests.cell_child FAILPOINT ACTION SKIP SEGMENT_ID OFFSET
"""

from __future__ import annotations

import sys

FORMAT = "<Q56sQ"
"""Number, filler, and the number again: a torn value gives itself away."""
STORES = 20


def value(number: int) -> tuple[int, bytes, int]:
    return number, bytes([number % 251]) * 56, number


def main(failpoint: str, action: str, skip: int, shmid: int, offset: int) -> None:
    from tests import failpoint_core

    failpoint_core.use()
    from shmd import _core, segment
    from shmd.cell import open_cell

    with segment.attach(shmid, readonly=False) as attached, open_cell(attached.mapping, FORMAT, offset=offset) as cell:
        _core.failpoint_set(failpoint, action, skip)
        for _ in range(STORES):
            cell.store(value(cell.version + 1))


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:]))  # type: ignore[arg-type]
