"""A GGUF file as Python values: written without checks, so that every field can be made to lie."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

ALIGNMENT = 32
STRING, ARRAY = 8, 9
#: Value type → struct format.
SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
U8, U32, I32, F32, BOOL, U64 = 0, 4, 5, 6, 7, 10


@dataclass
class Key:
    """One metadata entry. An array's `value` is (item type, items); `count` overrides its length
    field, or that of a string."""

    name: str
    kind: int
    value: Any
    count: int | None = None

    def encode(self) -> bytes:
        return _text(self.name) + struct.pack("<I", self.kind) + self._value(self.kind, self.value)

    def _value(self, kind: int, value: Any) -> bytes:
        if kind == STRING:
            return _text(value, self.count)
        if kind != ARRAY:
            return struct.pack("<" + SCALARS.get(kind, "Q"), value)
        item, items = value
        head = struct.pack("<IQ", item, len(items) if self.count is None else self.count)
        if item == STRING:
            return head + b"".join(_text(text) for text in items)
        return head + struct.pack(f"<{len(items)}{SCALARS.get(item, 'Q')}", *items)


@dataclass
class Tensor:
    """One tensor; `dims` innermost first, as the file has them. `offset` None = where it fits."""

    name: str
    dims: list[int]
    kind: int
    data: bytes
    offset: int | None = None


@dataclass
class File:
    """The whole; `num_keys` and `num_tensors` override the counts."""

    keys: list[Key]
    tensors: list[Tensor] = field(default_factory=list)
    version: int = 3
    num_keys: int | None = None
    num_tensors: int | None = None

    def encode(self) -> tuple[bytes, int]:
        """(the file, length of its header)."""
        tensors = len(self.tensors) if self.num_tensors is None else self.num_tensors
        keys = len(self.keys) if self.num_keys is None else self.num_keys
        head = [b"GGUF", struct.pack("<IQQ", self.version, tensors, keys)]
        head += [key.encode() for key in self.keys]
        at = 0
        for tensor in self.tensors:
            offset = at if tensor.offset is None else tensor.offset
            at += _padded(len(tensor.data))
            dims = struct.pack(f"<I{len(tensor.dims)}Q", len(tensor.dims), *tensor.dims)
            head += [_text(tensor.name), dims, struct.pack("<IQ", tensor.kind, offset)]
        header = b"".join(head)
        data = b"".join(t.data.ljust(_padded(len(t.data)), b"\0") for t in self.tensors)
        return header.ljust(_padded(len(header)), b"\0") + data, len(header)


def _text(text: str, count: int | None = None) -> bytes:
    raw = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(raw) if count is None else count) + raw


def _padded(n: int) -> int:
    return -(-n // ALIGNMENT) * ALIGNMENT
