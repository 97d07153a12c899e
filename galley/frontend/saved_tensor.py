"""Reads the file that `torch.save` writes of one tensor, without torch and without unpickling.

The file is a zip archive: `*/data.pkl` describes the tensor in a few opcodes, `*/data/KEY` are its
numbers. Of the pickle's opcodes those of such a description are interpreted, and nothing is called.
Source: torch/serialization.py, torch/_utils.py (`_rebuild_tensor_v2`).
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

#: Most bytes of a description, and files of an archive.
MAX_DESCRIPTION = 1 << 16
MAX_FILES = 16
#: Storage class → numpy's dtype; bfloat16 is read as its bits.
_DTYPES = {
    "torch FloatStorage": "<f4",
    "torch HalfStorage": "<f2",
    "torch BFloat16Storage": "<u2",
}
_TENSOR, _PARAMETER = "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"
_DICT = "collections OrderedDict"
#: Opcodes that push their argument.
_PLAIN = ("BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1")


@dataclass(frozen=True)
class _Global:
    """A name that the description refers to."""

    name: str


@dataclass(frozen=True)
class _Storage:
    """Where numbers are: a file of the archive, and how many it has."""

    dtype: str
    key: str
    count: int


@dataclass(frozen=True)
class _View:
    """A tensor: its numbers in the storage. All in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_rows(data: bytes, columns: int, max_rows: int) -> NDArray[np.float32]:
    """The tensor [rows, columns] or [1, rows, columns] of a file, as float32.

    Args:
        max_rows: more are refused before they are read.

    Raises:
        ValueError: the file is damaged, is no such file, or holds anything but one dense tensor of
            this shape and of type float32, float16 or bfloat16; says what.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _read(archive, columns, max_rows)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError) as error:
        raise ValueError(f"it is no file of torch.save: {error}") from None


def _read(archive: zipfile.ZipFile, columns: int, max_rows: int) -> NDArray[np.float32]:
    files = {info.filename: info for info in archive.infolist()}
    described = [name for name in files if name.endswith("/data.pkl")]
    if len(files) > MAX_FILES or len(described) != 1:
        raise ValueError("it must hold one tensor")
    if any(info.compress_type != zipfile.ZIP_STORED for info in files.values()):
        raise ValueError("its archive is compressed")
    root = described[0].removesuffix("data.pkl")
    if files[described[0]].file_size > MAX_DESCRIPTION:
        raise ValueError("it must hold one tensor")
    order = f"{root}byteorder"
    if order in files and archive.read(order) != b"little":
        raise ValueError("its numbers are not little-endian")
    view = _described(archive.read(described[0]))
    shape, strides = view.shape, view.strides
    if len(shape) == 3 and shape[0] == 1:
        shape, strides = shape[1:], strides[1:]
    if len(shape) != 2 or shape[1] != columns or not 1 <= shape[0] <= max_rows:
        raise ValueError(
            f"its shape is {list(view.shape)}; expected [1 … {max_rows} rows, {columns} columns]"
        )
    if min(*strides, view.offset) < 0:
        raise ValueError("it is damaged: a negative offset")
    last = view.offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    name = f"{root}data/{view.storage.key}"
    dtype = np.dtype(view.storage.dtype)
    if name not in files or files[name].file_size < (last + 1) * dtype.itemsize:
        raise ValueError("it is damaged: numbers are missing")
    numbers = np.frombuffer(archive.read(name), dtype, last + 1)[view.offset :]
    sized = [step * dtype.itemsize for step in strides]
    rows = np.lib.stride_tricks.as_strided(numbers, shape, sized, writeable=False)
    if dtype == np.uint16:
        return (rows.astype(np.uint32) << 16).view(np.float32)
    return np.ascontiguousarray(rows, np.float32)


def _described(pickle: bytes) -> _View:
    """The tensor that a description stands for."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def taken(count: int) -> tuple[Any, ...]:
        if count > len(stack) - (marks[-1] if marks else 0):
            raise ValueError("it is damaged")
        items = tuple(stack[len(stack) - count :])
        del stack[len(stack) - count :]
        return items

    try:
        for opcode, found, _ in pickletools.genops(pickle):
            name, argument = opcode.name, cast(Any, found)
            if name == "STOP":
                break
            if name in ("PROTO", "FRAME"):
                continue
            if name == "GLOBAL":
                stack.append(_Global(argument))
            elif name == "MARK":
                marks.append(len(stack))
            elif (
                name in ("BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2")
                or name == "LONG1"
            ):
                stack.append(argument)
            elif name in ("BINPUT", "LONG_BINPUT"):
                memo[argument] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif name in ("NEWTRUE", "NEWFALSE", "NONE"):
                stack.append({"NEWTRUE": True, "NEWFALSE": False}.get(name))
            elif name == "EMPTY_TUPLE":
                stack.append(())
            elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
                stack.append(taken(int(name[-1])))
            elif name == "TUPLE":
                first = marks.pop()
                stack[first:] = [tuple(stack[first:])]
            elif name == "BINPERSID":
                (where,) = taken(1)
                stack.append(_storage(where))
            elif name == "REDUCE":
                function, arguments = taken(2)
                stack.append(_made(function, arguments))
            else:
                raise ValueError(f"it holds more than one tensor ({name})")
        (view,) = stack
    except (IndexError, KeyError, TypeError, UnicodeDecodeError):
        raise ValueError("it is damaged") from None
    if not isinstance(view, _View):
        raise ValueError("it must hold one tensor")
    return view


def _storage(where: Any) -> _Storage:
    kind, storage, key, _, count = where
    dtype = _DTYPES.get(storage.name if isinstance(storage, _Global) else "")
    if kind != "storage" or dtype is None or not isinstance(key, str):
        raise ValueError("its type must be float32, float16 or bfloat16")
    return _Storage(dtype, key, count)


def _made(function: Any, arguments: Any) -> Any:
    """The result that one of the three functions of a description would give."""
    name = function.name if isinstance(function, _Global) else ""
    if name == _DICT and arguments == ():
        return {}
    if name == _PARAMETER:
        return arguments[0]
    if name != _TENSOR:
        raise ValueError(f"it holds more than one tensor ({name[:60]})")
    storage, offset, shape, strides = arguments[:4]
    numbers = (offset, *shape, *strides)
    whole = all(type(number) is int and number < 2**40 for number in numbers)
    if not (isinstance(storage, _Storage) and whole and len(shape) == len(strides)):
        raise ValueError("it is damaged")
    return _View(storage, offset, shape, strides)
