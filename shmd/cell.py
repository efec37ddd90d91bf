"""Cells: one value at a place in a segment, replaced as a whole by a writer, copied by any number of readers.

No lock, no daemon and no waiting: ``store`` writes into the one of two buffers that readers are not sent to, and then
turns them over by one store of 8 bytes. So a reader gets the last value, whole, also when the writer was killed in the
middle of the next one (``csrc/cell.c``). C programs share cells through ``shmd_cell_store`` and ``shmd_cell_load``.

A hostile writer can give a reader any value of the type, ``DecodeError`` or ``CellBusy``, and nothing worse.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from shmd import _core, limits
from shmd.cell_types import cell_type
from shmd.errors import InvalidOption

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from typing_extensions import Buffer

    from shmd.cell_types import CellType

__all__ = ["Cell", "open_cell"]

T = TypeVar("T")


class Cell(Generic[T]):
    """One value in shared memory. Made by ``segment.cell(type, offset)``; closed with its segment.

    Nothing here waits, so that it can be used from any task, thread or signal handler, and in a forked child.
    """

    __slots__ = ("__weakref__", "_cell", "_owner", "_type", "value_size_bytes")

    def __init__(self, memory: Buffer, kind: CellType, offset: int, owner: object) -> None:
        """Not for callers, who say ``segment.cell()``. ``memory`` is kept from being closed until ``close``."""
        self._owner = owner
        self._type = kind
        self.value_size_bytes = kind.size_bytes
        """Bytes of a value: the ``size`` that a C program gives to ``shmd_cell_open``."""
        self._cell = _core.Cell(memory, offset=offset, size=kind.size_bytes)

    @property
    def size_bytes(self) -> int:
        """Bytes that the cell takes in the segment, from its offset on: ``shmd_cell_bytes(value_size_bytes)``."""
        return _core.cell_size_bytes(self.value_size_bytes)

    @property
    def version(self) -> int:
        """How many values were stored so far, 0 for none: look here for whether ``load`` would give another value."""
        return self._cell.version

    def store(self, value: T) -> None:
        """Replace the value. Who loads from now on gets it, or a newer one.

        A cell is meant for one writer. If there are several, they take turns, and the last one wins; ``CellBusy``: one
        of them is at it right now, and was not done within a few microseconds. A writer that died in the middle holds
        up nobody. Writers share a PID namespace.

        Raises ``EncodeError`` (``value`` is not of the cell's type), ``CellMismatch`` (something else lies there),
        ``TypeError`` (a read-only segment); then nothing has changed.
        """
        self._cell.store(self._type.pack(value))

    def load(self) -> T:
        """A copy of the newest value, whole.

        Raises ``CellEmpty`` (nobody stored yet), ``CellBusy`` (the writer stored again and again while it was being
        copied: load later), ``CellMismatch`` (something else lies there) or ``DecodeError``.
        """
        return self.load_versioned()[0]

    def load_versioned(self) -> tuple[T, int]:
        """As ``load``, and which store it was: the first is 1."""
        raw, version = self._cell.load()
        value: T = self._type.unpack(raw)
        return value, version

    def close(self) -> None:
        """Give the memory back; later use raises ``ClosedError``. Twice is fine."""
        self._cell.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


@overload
def open_cell(
    memory: Buffer, kind: type[T], *, offset: int = 0, size: int | None = None, owner: object = None
) -> Cell[T]: ...
@overload
def open_cell(
    memory: Buffer, kind: object, *, offset: int = 0, size: int | None = None, owner: object = None
) -> Cell[Any]: ...
def open_cell(
    memory: Buffer, kind: object, *, offset: int = 0, size: int | None = None, owner: object = None
) -> Cell[Any]:
    """The cell for values of type ``kind`` (see ``cell_types``) at ``offset`` of ``memory``.

    Nothing is read or written; zeros are an empty cell. ``owner`` is kept alive by the cell. Raises ``InvalidOption``:
    no such type, or no such place (``offset`` is a multiple of 8, and ``shmd_cell_bytes(value size)`` bytes follow it).
    """
    checked = cell_type(kind, size)
    if not 1 <= checked.size_bytes <= limits.CELL_SIZE_BYTES_MAX:
        raise InvalidOption(
            f"a cell's value cannot take {checked.size_bytes} bytes",
            f"from 1 to {limits.CELL_SIZE_BYTES_MAX} bytes; for more, publish records and ask client.latest()",
        )
    return Cell(memory, checked, offset, owner)
