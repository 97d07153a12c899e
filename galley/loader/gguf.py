"""The GGUF container: a bounded reader of its header over a memory map.

    magic "GGUF" | version u32 | tensor count u64 | key count u64
    keys:     name | value type u32 | value               (strings: length u64 + bytes)
    tensors:  name | ndim u32 | dims u64[ndim] | type u32 | offset u64
    padding to general.alignment
    tensor data: each at data_start + offset

Every count, length and offset is checked against the bytes that are there before anything is
allocated, so a broken or hostile file costs an error message. Arrays stay in the map until they
are read. Knows no model and no tensor format beyond sizes.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from galley.errors import ModelError
from galley.kernels import _native
from galley.loader.ggml_types import GGML_TYPES, GGMLType
from galley.loader.mapped import mapped

T = TypeVar("T")

MAX_DIMS = 8
#: Names of keys and tensors; llama.cpp writes at most 64 bytes, real files stay far below.
MAX_NAME = 65_535
MAX_KEYS = 65_536
MAX_TENSORS = 1_048_576
DEFAULT_ALIGNMENT = 32

_SCALARS: dict[int, str] = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_STRING = 8
_ARRAY = 9
_U32 = struct.Struct("<I").unpack_from
_U64 = struct.Struct("<Q").unpack_from


class TensorInfo(msgspec.Struct, frozen=True):
    """Where a tensor lies. `shape` is outermost first (GGUF writes innermost first)."""

    name: str
    shape: tuple[int, ...]
    type: GGMLType
    start: int
    num_bytes: int


class GGUFFile:
    """One opened file: its keys and tensor table.

    Attributes:
        path: the file.
        keys: names of all metadata keys, in file order.
        tensors: name → TensorInfo.
    """

    def __init__(self, path: Path, contents: bytes | None = None) -> None:
        """Raises ModelError naming the file and what is wrong with it.

        Args:
            contents: of the file, where it is not to be mapped.
        """
        self.path = path
        self._map = mapped(path) if contents is None else contents
        cursor = _Cursor(self._map, path)
        num_tensors, num_keys = cursor.preamble()
        self._values: dict[str, tuple[int, int]] = cursor.keys(num_keys)
        infos = cursor.tensor_infos(num_tensors)
        self.alignment = self._read_alignment()
        self.data_start = -(-cursor.pos // self.alignment) * self.alignment
        self.tensors = self._place(infos)

    @property
    def keys(self) -> list[str]:
        return list(self._values)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key: a number, bool, str, numpy array or list of str.

        Raises ModelError for text that is not UTF-8 and for arrays of arrays.
        """
        place = self._values.get(key)
        if place is None:
            return default
        kind, pos = place
        return _Cursor(self._map, self.path, pos).value(kind, key)

    def pairs(self, key: str) -> list[tuple[str, str]] | None:
        """The strings of a list, each cut at its first space behind its first character; None if
        the key is missing or holds no list of strings.

        Raises ModelError for text that is not UTF-8 or has no such space.
        """
        kind, pos = self._values.get(key, (None, 0))
        cursor = _Cursor(self._map, self.path, pos)
        if kind != _ARRAY:
            return None
        item, count = cursor.array_head(key)
        return cursor.strings(count, key, _native.read_pairs) if item == _STRING else None

    def data(self, info: TensorInfo) -> np.ndarray:
        """The tensor's bytes as an array into the map: [*shape] dense, or [*rows, bytes] uint8."""
        if info.type.dense is not None:
            count = math.prod(info.shape)
            flat = np.frombuffer(self._map, info.type.dense, count, info.start)
            return flat.reshape(info.shape)
        flat = np.frombuffer(self._map, np.uint8, info.num_bytes, info.start)
        row_bytes = info.shape[-1] // info.type.block * info.type.block_bytes
        return flat.reshape(*info.shape[:-1], row_bytes)

    def _read_alignment(self) -> int:
        alignment = self.get("general.alignment", DEFAULT_ALIGNMENT)
        ok = isinstance(alignment, int) and not isinstance(alignment, bool)
        if not ok or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
            raise ModelError(f"{self.path}: general.alignment is {alignment!r}, not a power of two")
        return alignment

    def _place(self, infos: list[TensorInfo]) -> dict[str, TensorInfo]:
        """Turn offsets into positions; check that tensors lie inside the file and apart."""
        tensors: dict[str, TensorInfo] = {}
        size = len(self._map)
        for info in infos:
            where = f"{self.path}: tensor {info.name}"
            if info.name in tensors:
                raise ModelError(f"{where} appears twice")
            if info.start % self.alignment:
                raise ModelError(
                    f"{where}: offset {info.start} is not a multiple of {self.alignment}"
                )
            start = self.data_start + info.start
            if start + info.num_bytes > size:
                raise ModelError(
                    f"{where}: its {info.num_bytes} bytes at {start} reach beyond the file's end "
                    f"at {size}; the file is truncated or damaged"
                )
            tensors[info.name] = TensorInfo(info.name, info.shape, info.type, start, info.num_bytes)
        in_order = sorted(tensors.values(), key=lambda t: t.start)
        for left, right in pairwise(in_order):
            if left.start + left.num_bytes > right.start:
                raise ModelError(f"{self.path}: tensors {left.name} and {right.name} overlap")
        return tensors


class _Cursor:
    """A position in the header; every read is checked against the end of the file."""

    def __init__(self, buffer: mmap.mmap | bytes, path: Path, pos: int = 0) -> None:
        self.buffer = buffer
        self.path = path
        self.size = len(buffer)
        self.pos = pos

    def error(self, message: str) -> ModelError:
        return ModelError(f"{self.path}: {message}")

    def preamble(self) -> tuple[int, int]:
        """(number of tensors, number of keys)."""
        magic = self.buffer[:4]
        if magic != b"GGUF":
            raise self.error(f"not a GGUF file: it begins with {magic!r}")
        self.pos = 4
        version = self.u32("the version")
        if version not in (2, 3):
            if version in (2 << 24, 3 << 24):
                raise self.error("big-endian GGUF files are not supported")
            raise self.error(f"GGUF version {version} is not supported (2 and 3 are)")
        num_tensors = self.u64("the number of tensors")
        num_keys = self.u64("the number of keys")
        # The least that a tensor entry (name, ndim, one dim, type, offset) and a key take.
        self.need(num_tensors, 32, "tensors", MAX_TENSORS)
        self.need(num_keys, 13, "keys", MAX_KEYS)
        return num_tensors, num_keys

    def keys(self, count: int) -> dict[str, tuple[int, int]]:
        """name → (value type, position of the value); walks over the values."""
        places: dict[str, tuple[int, int]] = {}
        for _ in range(count):
            name = self.name("a key")
            if name in places:
                raise self.error(f"key {name} appears twice")
            kind = self.u32(f"the type of key {name}")
            places[name] = (kind, self.pos)
            self.skip(kind, name)
        return places

    def tensor_infos(self, count: int) -> list[TensorInfo]:
        """Entries of the tensor table; `start` is still relative to the data section."""
        return [self._tensor_info() for _ in range(count)]

    def _tensor_info(self) -> TensorInfo:
        name = self.name("a tensor")
        ndim = self.u32(f"tensor {name}")
        if not 1 <= ndim <= MAX_DIMS:
            raise self.error(f"tensor {name} has {ndim} dimensions (1 to {MAX_DIMS} are possible)")
        dims = [self.u64(f"tensor {name}") for _ in range(ndim)]
        if 0 in dims:
            raise self.error(f"tensor {name} of shape {dims[::-1]} is empty")
        number = self.u32(f"tensor {name}")
        kind = GGML_TYPES.get(number)
        if kind is None:
            raise self.error(f"tensor {name} has the unknown type number {number}")
        offset = self.u64(f"tensor {name}")
        if dims[0] % kind.block:
            raise self.error(
                f"tensor {name}: rows of {dims[0]} values are not whole {kind.name} blocks "
                f"of {kind.block}"
            )
        num_bytes = math.prod(dims) // kind.block * kind.block_bytes
        if num_bytes > self.size or offset > self.size:
            raise self.error(
                f"tensor {name} of shape {dims[::-1]} takes {num_bytes} bytes at offset {offset}, "
                f"but the file has only {self.size}; it is truncated or damaged"
            )
        return TensorInfo(name, tuple(dims[::-1]), kind, offset, num_bytes)

    def skip(self, kind: int, name: str) -> None:
        """Move past a value. Arrays of arrays are walked one level deep, which is all there is."""
        if kind in _SCALARS:
            self.advance(np.dtype(_SCALARS[kind]).itemsize, name)
        elif kind == _STRING:
            self.advance(self.u64(name), name)
        elif kind == _ARRAY:
            item, count = self.array_head(name)
            if item == _STRING:
                self.walk_strings(count, name)
            else:
                self.advance(count * np.dtype(_SCALARS[item]).itemsize, name)
        else:
            raise self.error(f"key {name} has the unknown value type {kind}")

    def array_head(self, name: str) -> tuple[int, int]:
        """(item type, number of items) of an array whose items fit in the file."""
        item = self.u32(name)
        count = self.u64(name)
        if item == _STRING:
            self.need(count, 8, f"strings in {name}")
        elif item in _SCALARS:
            self.need(count, np.dtype(_SCALARS[item]).itemsize, f"values in {name}")
        else:
            raise self.error(f"key {name} is an array of the unsupported value type {item}")
        return item, count

    def walk_strings(self, count: int, name: str) -> None:
        # A vocabulary has hundreds of thousands, so native code walks.
        end = _native.skip_strings(self._address(), self.size, self.pos, count)
        if end < 0:
            raise self.error(f"ends inside key {name}; it is truncated or damaged")
        self.pos = end

    def _address(self) -> int:
        return int(np.frombuffer(self.buffer, np.uint8).ctypes.data)

    def value(self, kind: int, name: str) -> Any:
        """Read the value at the cursor; `skip` has checked that it is in bounds."""
        if kind == _STRING:
            return self.text(name)
        if kind != _ARRAY:
            return np.frombuffer(self.buffer, _SCALARS[kind], 1, self.pos)[0].item()
        item, count = self.array_head(name)
        if item != _STRING:
            return np.frombuffer(self.buffer, _SCALARS[item], count, self.pos)
        return self.strings(count, name, _native.read_strings)

    def strings(
        self, count: int, name: str, read: Callable[[int, int, int, int], list[T]]
    ) -> list[T]:
        try:
            return read(self._address(), self.size, self.pos, count)
        except UnicodeDecodeError:
            raise self.error(f"an item of key {name} is not UTF-8 text") from None
        except ValueError as text:
            raise self.error(f"an item of key {name}, {str(text)!r}, is not two words") from None

    def text(self, name: str) -> str:
        length = self.u64(name)
        start = self.pos
        self.advance(length, name)
        try:
            return self.buffer[start : self.pos].decode()
        except UnicodeDecodeError:
            raise self.error(f"{name} is not UTF-8 text") from None

    def name(self, what: str) -> str:
        length = _U64(self.buffer, self.pos)[0] if self.pos + 8 <= self.size else 0
        if length > MAX_NAME:
            raise self.error(f"the name of {what} would be {length} bytes long")
        return self.text(f"the name of {what}")

    def u32(self, what: str) -> int:
        self.advance(4, what)
        return _U32(self.buffer, self.pos - 4)[0]

    def u64(self, what: str) -> int:
        self.advance(8, what)
        return _U64(self.buffer, self.pos - 8)[0]

    def advance(self, num_bytes: int, what: str) -> None:
        self.pos += num_bytes
        if self.pos > self.size:
            raise self.error(f"ends inside {what}; it is truncated or damaged")

    def need(self, count: int, bytes_each: int, what: str, most: int | None = None) -> None:
        if count * bytes_each > self.size - self.pos:
            raise self.error(f"claims {count} {what}, more than its {self.size} bytes can hold")
        if most is not None and count > most:
            raise self.error(f"claims {count} {what}; at most {most} are accepted")
