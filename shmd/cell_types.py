"""What a cell's values can be, and how each becomes bytes of one fixed size and back.

| type                          | value                        | bytes                                      |
|-------------------------------|------------------------------|--------------------------------------------|
| a ``struct`` format           | a tuple; the item if just one | as the format says                        |
| a ``ctypes.Structure`` class  | an instance (a copy)         | the structure, as C sees it                |
| a numpy dtype                 | a scalar, or an array        | the dtype's own; C programs see an array   |
| a ``msgspec.Struct`` class    | an instance                  | u32 length, msgpack, up to ``size``        |

The bytes come from a program that may be hostile: any of them give a value, or ``DecodeError``.
"""

from __future__ import annotations

import struct
import sys
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeGuard

import msgspec

from shmd.errors import DecodeError, EncodeError, InvalidOption

if TYPE_CHECKING:
    import ctypes

    import numpy as np

_LENGTH: Final = struct.Struct("<I")


class CellType(Protocol):
    """How values become bytes."""

    size_bytes: int

    def pack(self, value: Any) -> bytes:
        """Exactly ``size_bytes``. ``EncodeError`` if ``value`` is not of this type."""

    def unpack(self, raw: bytes) -> Any:
        """``DecodeError`` if that cannot be a value."""


def cell_type(kind: object, size: int | None) -> CellType:
    """The type that ``kind`` stands for (see the table above); ``size`` is for msgspec types only, and needed there.

    Raises ``InvalidOption``.
    """
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        if type(size) is not int or size < 1:
            raise InvalidOption(
                f"a cell of {kind.__name__} needs size=, not {size!r}",
                "the most bytes that a packed value may take, such as 256",
            )
        return _PackedType(kind, size)
    if size is not None:
        raise InvalidOption(f"size={size!r} has no meaning for {kind!r}", "its values have a size of their own")
    if isinstance(kind, str):
        return _FormatType(kind)
    if _is_structure(kind):
        return _StructureType(kind)
    return _ArrayType(kind)


class _FormatType:
    def __init__(self, form: str) -> None:
        try:
            self._struct = struct.Struct(form)
        except struct.error as error:
            raise InvalidOption(f"{form!r} is no struct format: {error}", "see the struct module") from error
        self.size_bytes = self._struct.size
        self._single = len(self._struct.unpack(bytes(self.size_bytes))) == 1

    def pack(self, value: Any) -> bytes:
        try:
            return self._struct.pack(value) if self._single else self._struct.pack(*value)
        except (struct.error, TypeError, OverflowError) as error:
            raise EncodeError(f"{value!r} does not fit the format {self._struct.format!r}: {error}") from error

    def unpack(self, raw: bytes) -> Any:
        values = self._struct.unpack(raw)
        return values[0] if self._single else values


class _StructureType:
    def __init__(self, kind: type[ctypes.Structure]) -> None:
        if _holds_pointers(kind):
            raise InvalidOption(
                f"{kind.__name__} holds pointers, which mean nothing in another process", "offsets, or arrays of char"
            )
        import ctypes  # whoever made ``kind`` has it

        self._kind = kind
        self.size_bytes = ctypes.sizeof(kind)

    def pack(self, value: Any) -> bytes:
        if not isinstance(value, self._kind):
            raise EncodeError(f"{value!r} is no {self._kind.__name__}")
        return bytes(value)

    def unpack(self, raw: bytes) -> Any:
        return self._kind.from_buffer_copy(raw)


class _ArrayType:
    def __init__(self, kind: object) -> None:
        self._dtype = _dtype(kind)
        if self._dtype.hasobject:
            raise InvalidOption(f"{self._dtype} holds pointers to Python objects", "a dtype of numbers and bytes")
        self.size_bytes = self._dtype.itemsize

    def pack(self, value: Any) -> bytes:
        import numpy as np

        try:
            array = np.empty(self._dtype.shape, self._dtype.base)
            array[...] = value
        except (TypeError, ValueError, OverflowError) as error:
            raise EncodeError(f"{value!r} does not fit the dtype {self._dtype}: {error}") from error
        return array.tobytes()

    def unpack(self, raw: bytes) -> Any:
        import numpy as np

        values = np.frombuffer(raw, self._dtype.base)
        return values.reshape(self._dtype.shape) if self._dtype.shape else values[0]


class _PackedType:
    def __init__(self, kind: type[msgspec.Struct], size: int) -> None:
        self._kind = kind
        self._most = size
        self.size_bytes = _LENGTH.size + size
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(kind)

    def pack(self, value: Any) -> bytes:
        if not isinstance(value, self._kind):
            raise EncodeError(f"{value!r} is no {self._kind.__name__}")
        try:
            packed = self._encoder.encode(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise EncodeError(f"{value!r} cannot be packed: {error}") from error
        if len(packed) > self._most:
            raise EncodeError(
                f"{len(packed)} bytes are over this cell's limit of {self._most}", "open it with a larger size="
            )
        return (_LENGTH.pack(len(packed)) + packed).ljust(self.size_bytes, b"\0")

    def unpack(self, raw: bytes) -> Any:
        (length,) = _LENGTH.unpack_from(raw)
        if length > self._most:
            raise DecodeError(f"the cell says that its value takes {length} bytes, and has room for {self._most}")
        try:
            return self._decoder.decode(memoryview(raw)[_LENGTH.size : _LENGTH.size + length])
        except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
            raise DecodeError(f"the cell's value is no {self._kind.__name__}: {error}") from error


def _is_structure(kind: object) -> TypeGuard[type[ctypes.Structure]]:
    """Whether it is a ``ctypes.Structure`` class: without importing ctypes for programs that do not."""
    ctypes = sys.modules.get("ctypes")
    return ctypes is not None and isinstance(kind, type) and issubclass(kind, ctypes.Structure)


def _holds_pointers(kind: Any) -> bool:
    """Following one that a hostile program wrote would crash."""
    import ctypes

    if issubclass(kind, ctypes.Array):
        return _holds_pointers(kind._type_)
    if issubclass(kind, ctypes.Structure | ctypes.Union):
        fields = (field for base in kind.__mro__ for field in vars(base).get("_fields_", ()))
        return any(_holds_pointers(field[1]) for field in fields)
    pointers = (ctypes.c_char_p, ctypes.c_wchar_p, ctypes.c_void_p, ctypes.py_object, ctypes._Pointer)
    return issubclass(kind, (*pointers, ctypes._CFuncPtr))  # type: ignore[attr-defined] # typeshed does not name it


def _dtype(kind: object) -> np.dtype[Any]:
    """``kind`` as a dtype; ``InvalidOption`` if it is none, or if there is no numpy."""
    try:
        import numpy as np
    except ImportError:
        is_one = False
    else:
        is_one = isinstance(kind, np.dtype) or (isinstance(kind, type) and issubclass(kind, np.generic))
    if not is_one:
        raise InvalidOption(
            f"{kind!r} is no type for a cell's value",
            "a struct format, a ctypes.Structure or msgspec.Struct class, or a numpy dtype (pip install shmd[numpy])",
        )
    return np.dtype(kind)  # type: ignore[call-overload,no-any-return]
