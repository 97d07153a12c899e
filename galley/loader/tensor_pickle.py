"""The pickle inside a PyTorch file, read without running anything.

Only what a dictionary of tensors needs is understood: containers, numbers, texts, references to
storages and the functions of torch that make a tensor of one. Nothing is imported and nothing is
called; any other name or opcode is an error. Memory is bounded by the length of the pickle.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import msgspec

#: Values at once on the stack.
_MAX_STACK = 1 << 20
_TENSOR_V2 = "torch._utils _rebuild_tensor_v2"
_TENSOR_V3 = "torch._utils _rebuild_tensor_v3"
_PARAMETER = "torch._utils _rebuild_parameter"
_ORDERED_DICT = "collections OrderedDict"
#: Class of a storage → the dtype of its numbers (as in `RawTensor`).
STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "UntypedStorage": "uint8",
}
#: Dtypes by torch's names, of tensors that say it beside an untyped storage.
_DTYPES = {
    f"torch {name}": name
    for name in ("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "uint16", "uint32", "uint64")
}
_FUNCTIONS = {_TENSOR_V2, _TENSOR_V3, _PARAMETER, _ORDERED_DICT}
_GLOBALS = _FUNCTIONS | set(_DTYPES)
_GLOBALS |= {f"torch {name}" for name in STORAGES} | {"torch.storage UntypedStorage"}


class PickleError(ValueError):
    """The pickle is damaged, or holds something else than tensors."""


class Global(msgspec.Struct, frozen=True):
    """A name that the pickle refers to: "module name"."""

    name: str


class StorageRef(msgspec.Struct, frozen=True):
    """A storage: the record of the file that holds it, the dtype, and how many numbers it says."""

    key: str
    dtype: str
    count: int


class TensorRef(msgspec.Struct, frozen=True):
    """A view of a storage. `offset` and `strides` count numbers. Unchecked."""

    storage: StorageRef
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Mark:
    """Begins the items of a container on the stack."""


_MARK = _Mark()


def read_tensors(data: bytes) -> dict[str, TensorRef]:
    """The tensors of a pickled state dict by name. Raises PickleError."""
    try:
        value = _Reader(data).run()
    except (struct.error, IndexError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise PickleError(f"its pickle is damaged ({type(error).__name__})") from None
    if not isinstance(value, dict):
        raise PickleError(f"it holds {_kind(value)}, not a dictionary of tensors")
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, TensorRef):
            shown = repr(name)[:80] if isinstance(name, str | int) else _kind(name)
            raise PickleError(f"its entry {shown} is {_kind(tensor)}, not a tensor")
    return value


def _kind(value: Any) -> str:
    if isinstance(value, TensorRef):
        return "a tensor"
    return value.name if isinstance(value, Global) else f"a {type(value).__name__}"


class _Reader:
    """A stack machine over the opcodes that `torch.save` writes for a state dict."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        while True:
            code = self._take(1)[0]
            if code == 0x2E:  # STOP
                return self._stack.pop()
            action = _ACTIONS.get(code)
            if action is None:
                raise PickleError(f"its pickle has the opcode {code:#04x}, which no tensor needs")
            action(self)
            if len(self._stack) > _MAX_STACK:
                raise PickleError("its pickle nests too deep or holds too many items")

    def _take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise PickleError("its pickle is truncated")
        piece = self._data[self._at : end]
        self._at = end
        return piece

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _line(self) -> str:
        end = self._data.find(b"\n", self._at, self._at + 300)
        if end < 0:
            raise PickleError("its pickle is truncated")
        text = self._data[self._at : end].decode()
        self._at = end + 1
        return text

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _since_mark(self) -> list[Any]:
        at = len(self._stack) - 1
        while self._stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise PickleError("its pickle is damaged (no mark)")
        items = self._stack[at + 1 :]
        del self._stack[at:]
        return items

    def _text(self, form: str) -> None:
        self._push(self._take(self._number(form)).decode())

    def _long(self) -> None:
        size = self._number("<B")
        if size > 8:
            raise PickleError("its pickle has an integer of more than 64 bits")
        self._push(int.from_bytes(self._take(size), "little", signed=True))

    def _get(self, form: str) -> None:
        self._push(self._memo[self._number(form)])

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _global(self, module: Any, name: Any) -> None:
        full = f"{module} {name}"
        if full not in _GLOBALS:
            raise PickleError(
                f"it refers to {full[:120].replace(' ', '.')}, which is neither a tensor nor a "
                "storage and may run code"
            )
        self._push(Global(full))

    def _stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._global(module, name)

    def _tuple(self, count: int) -> None:
        if len(self._stack) < count:
            raise PickleError("its pickle is damaged (empty stack)")
        items = tuple(self._stack[len(self._stack) - count :])
        del self._stack[len(self._stack) - count :]
        self._push(items)

    def _set(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise PickleError("its pickle is damaged (items without a dictionary)")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int):
                raise PickleError("it has a dictionary whose keys are not texts")
            target[key] = value

    def _set_one(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set([key, value])

    def _append(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise PickleError("its pickle is damaged (items without a list)")
        self._stack[-1].extend(items)

    def _build(self) -> None:
        """Attributes of a state dict (its `_metadata`), which say nothing of tensors."""
        self._stack.pop()
        if not isinstance(self._stack[-1], dict):
            raise PickleError("its pickle sets attributes of something else than a dictionary")

    def _reduce(self) -> None:
        args, function = self._stack.pop(), self._stack.pop()
        name = function.name if isinstance(function, Global) else ""
        if name not in _FUNCTIONS or not isinstance(args, tuple):
            raise PickleError(f"its pickle calls {_kind(function)}")
        if name == _ORDERED_DICT:
            if args:
                raise PickleError("its pickle makes a dictionary of something")
            self._push({})
        elif name == _PARAMETER:
            if not args or not isinstance(args[0], TensorRef):
                raise PickleError("its pickle makes a parameter of something else than a tensor")
            self._push(args[0])
        else:
            self._push(_tensor(args, name == _TENSOR_V3))

    def _persistent(self) -> None:
        """("storage", class, record, device, count)."""
        ref = self._stack.pop()
        if not isinstance(ref, tuple) or len(ref) != 5 or ref[0] != "storage":
            raise PickleError("its pickle refers to something else than a storage")
        _, kind, key, _, count = ref
        dtype = STORAGES.get(kind.name.split(" ")[-1]) if isinstance(kind, Global) else None
        if dtype is None or not isinstance(key, str) or type(count) is not int or count < 0:
            raise PickleError("its pickle has a storage of a wrong kind")
        self._push(StorageRef(key, dtype, count))


def _tensor(args: tuple[Any, ...], typed: bool) -> TensorRef:
    """Of the arguments of torch's function; `typed`: the seventh is the dtype."""
    if len(args) < (7 if typed else 6):
        raise PickleError("its pickle makes a tensor of too few values")
    storage, offset, shape, strides = args[:4]
    sizes = (shape, strides)
    if not isinstance(storage, StorageRef) or type(offset) is not int:
        raise PickleError("its pickle makes a tensor of something else than a storage")
    if not all(isinstance(s, tuple) and all(type(n) is int for n in s) for s in sizes):
        raise PickleError("its pickle has a tensor whose sizes are not numbers")
    dtype = storage.dtype
    if typed:
        named = _DTYPES.get(args[6].name) if isinstance(args[6], Global) else None
        if named is None:
            raise PickleError("its pickle has a tensor of an unknown dtype")
        dtype = named
    return TensorRef(storage, dtype, offset, shape, strides)


def _memoize(reader: _Reader) -> None:
    reader._put(len(reader._memo))


#: Opcode → what it does. Those of protocols 2 to 4 that tensors need.
_ACTIONS: dict[int, Callable[[_Reader], object]] = {
    0x80: lambda r: r._take(1),  # PROTO
    0x95: lambda r: r._take(8),  # FRAME
    ord("c"): lambda r: r._global(r._line(), r._line()),
    0x93: lambda r: r._stack_global(),
    ord("h"): lambda r: r._get("<B"),
    ord("j"): lambda r: r._get("<I"),
    ord("q"): lambda r: r._put(r._number("<B")),
    ord("r"): lambda r: r._put(r._number("<I")),
    0x94: _memoize,
    ord("Q"): lambda r: r._persistent(),
    ord("R"): lambda r: r._reduce(),
    ord("b"): lambda r: r._build(),
    ord("("): lambda r: r._push(_MARK),
    ord("}"): lambda r: r._push({}),
    ord("]"): lambda r: r._push([]),
    ord(")"): lambda r: r._push(()),
    ord("t"): lambda r: r._push(tuple(r._since_mark())),
    0x85: lambda r: r._tuple(1),
    0x86: lambda r: r._tuple(2),
    0x87: lambda r: r._tuple(3),
    ord("u"): lambda r: r._set(r._since_mark()),
    ord("s"): lambda r: r._set_one(),
    ord("e"): lambda r: r._append(r._since_mark()),
    ord("a"): lambda r: r._append([r._stack.pop()]),
    ord("X"): lambda r: r._text("<I"),
    0x8C: lambda r: r._text("<B"),
    ord("J"): lambda r: r._push(r._number("<i")),
    ord("K"): lambda r: r._push(r._number("<B")),
    ord("M"): lambda r: r._push(r._number("<H")),
    ord("G"): lambda r: r._push(r._number(">d")),
    0x8A: lambda r: r._long(),
    ord("N"): lambda r: r._push(None),
    0x88: lambda r: r._push(True),
    0x89: lambda r: r._push(False),
}
