"""Safetensors files, single or sharded, mapped. The header reader is bounded and needs no torch.

header length u64 | header JSON {name: {"dtype", "shape", "data_offsets": [begin, end]}} | data
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import ml_dtypes
import numpy as np

from galley.errors import ModelError
from galley.loader.config_changes import ConfigChanges
from galley.loader.fields import read_json
from galley.loader.hf_info import info_of_directory
from galley.loader.hf_names import model_name
from galley.loader.mapped import mapped
from galley.loader.source import Source
from galley.loader.tensor import RawTensor, TensorHeader
from galley.loader.text_part import TEXT_OF, text_name

#: The format's own limit.
MAX_HEADER_BYTES = 100_000_000
MAX_DIMS = 8
INDEX = "model.safetensors.index.json"

#: Safetensors' dtype → (RawTensor's dtype, numpy dtype).
DTYPES: dict[str, tuple[str, np.dtype]] = {
    "F64": ("float64", np.dtype("<f8")),
    "F32": ("float32", np.dtype("<f4")),
    "F16": ("float16", np.dtype("<f2")),
    "BF16": ("bfloat16", np.dtype(ml_dtypes.bfloat16)),
    "F8_E4M3": ("float8_e4m3fn", np.dtype(ml_dtypes.float8_e4m3fn)),
    "F8_E5M2": ("float8_e5m2", np.dtype(ml_dtypes.float8_e5m2)),
    "F8_E8M0": ("float8_e8m0fnu", np.dtype(ml_dtypes.float8_e8m0fnu)),
    "F4": ("float4_e2m1fn", np.dtype("u1")),
    "I64": ("int64", np.dtype("<i8")),
    "I32": ("int32", np.dtype("<i4")),
    "I16": ("int16", np.dtype("<i2")),
    "I8": ("int8", np.dtype("i1")),
    "U64": ("uint64", np.dtype("<u8")),
    "U32": ("uint32", np.dtype("<u4")),
    "U16": ("uint16", np.dtype("<u2")),
    "U8": ("uint8", np.dtype("u1")),
    "BOOL": ("bool", np.dtype("?")),
}

#: The dtype with two numbers in a byte, the first in the low nibble: its data are bytes.
TWO_A_BYTE = "F4"


@dataclass(frozen=True)
class _Entry:
    dtype: str
    shape: tuple[int, ...]
    start: int


class SafetensorsFile:
    """One file: its header, checked against the file's size, and its mapped data."""

    def __init__(self, path: Path, data: bytes | None = None) -> None:
        """Raises ModelError naming the file and what is wrong with it.

        Args:
            data: the file's contents; None = the file is mapped.
        """
        self.path = path
        self._map: bytes | mmap.mmap
        if data is not None:
            self._map = data
        else:
            self._map = mapped(path)
        header, data_start = self._read_header()
        self._entries = self._check(header, data_start)

    def names(self) -> list[str]:
        return list(self._entries)

    def header(self, name: str) -> TensorHeader:
        entry = self._entries[name]
        return TensorHeader(entry.shape, DTYPES[entry.dtype][0])

    def tensor(self, name: str) -> RawTensor:
        entry = self._entries[name]
        ours, dtype = DTYPES[entry.dtype]
        stored = entry.shape
        if entry.dtype == TWO_A_BYTE:
            stored = (*stored[:-1], stored[-1] // 2)
        flat = np.frombuffer(self._map, dtype, math.prod(stored), entry.start)
        return RawTensor(name, entry.shape, ours, flat.reshape(stored))

    def _read_header(self) -> tuple[dict[str, Any], int]:
        size = len(self._map)
        length = struct.unpack_from("<Q", self._map)[0] if size >= 8 else 0
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise ModelError(
                f"{self.path}: not a safetensors file, or truncated: it claims a header of "
                f"{length} bytes and has {size} in all"
            )
        try:
            header = json.loads(self._map[8 : 8 + length], object_pairs_hook=_no_duplicates)
        except (ValueError, RecursionError) as error:
            raise ModelError(f"{self.path}: its header is not valid JSON: {error}") from None
        if not isinstance(header, dict):
            raise ModelError(f"{self.path}: its header is not a JSON object")
        header.pop("__metadata__", None)
        return header, 8 + length

    def _check(self, header: dict[str, Any], data_start: int) -> dict[str, _Entry]:
        """Entries whose bytes lie inside the file, back to back without holes, as the format
        demands."""
        spans: list[tuple[int, int, str]] = []
        entries: dict[str, _Entry] = {}
        for name, fields in header.items():
            dtype, shape, begin, end = self._fields(name, fields)
            needed = math.prod(shape) * DTYPES[dtype][1].itemsize
            if dtype == TWO_A_BYTE:
                if not shape or shape[-1] % 2:
                    raise ModelError(
                        f"{self.path}: tensor {name}: {dtype} of shape {list(shape)} has rows that "
                        "are not whole bytes"
                    )
                needed //= 2
            if end - begin != needed:
                raise ModelError(
                    f"{self.path}: tensor {name}: {dtype} of shape {list(shape)} takes {needed} "
                    f"bytes, but data_offsets say {end - begin}"
                )
            spans.append((begin, end, name))
            entries[name] = _Entry(dtype, shape, data_start + begin)
        position = 0
        for begin, end, name in sorted(spans):
            if begin != position:
                raise ModelError(
                    f"{self.path}: tensor {name} begins at {begin}, expected {position}: "
                    "tensors overlap or leave a hole"
                )
            position = end
        if data_start + position != len(self._map):
            raise ModelError(
                f"{self.path}: its tensors end at byte {data_start + position}, the file at "
                f"{len(self._map)}; it is truncated or damaged"
            )
        return entries

    def _fields(self, name: str, fields: Any) -> tuple[str, tuple[int, ...], int, int]:
        where = f"{self.path}: tensor {name}"
        if not isinstance(fields, dict):
            raise ModelError(f"{where}: its entry is not an object")
        dtype = fields.get("dtype")
        shape = _sizes(fields.get("shape"))
        offsets = _sizes(fields.get("data_offsets"))
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise ModelError(f"{where}: unknown dtype {dtype!r}")
        if shape is None or len(shape) > MAX_DIMS:
            raise ModelError(f"{where}: shape {fields.get('shape')!r:.80} is not a list of sizes")
        if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
            value = fields.get("data_offsets")
            raise ModelError(f"{where}: data_offsets {value!r:.80} are not [begin, end]")
        return dtype, tuple(shape), offsets[0], offsets[1]


class TensorFile(Protocol):
    """An opened weight file, of whatever format."""

    path: Path

    def names(self) -> list[str]: ...

    def header(self, name: str) -> TensorHeader: ...

    def tensor(self, name: str) -> RawTensor: ...


F = TypeVar("F", bound=TensorFile)


class SafetensorsCheckpoint:
    """The safetensors of a Hugging Face directory."""

    def __init__(self, directory: Path, changes: ConfigChanges | None = None) -> None:
        """Raises ModelError for missing, damaged or unsupported files."""
        self.directory = directory
        self.model_info = info_of_directory(directory, changes)
        architecture = self.model_info.architecture
        is_part = TEXT_OF in self.model_info.hf_config
        self._places: dict[str, tuple[TensorFile, str]] = {}
        for name, file in self._open_files(directory).items():
            wanted = text_name(name) if is_part else model_name(architecture, name)
            if wanted is not None:
                self._places[wanted] = (file, name)

    @staticmethod
    def open(source: Source) -> SafetensorsCheckpoint:
        """For the load format "safetensors"."""
        return SafetensorsCheckpoint(source.path, source.changes)

    def _open_files(self, directory: Path) -> Mapping[str, TensorFile]:
        """Stored name of each tensor → its file."""
        return open_all(directory, INDEX, weight_files, SafetensorsFile)

    def names(self) -> list[str]:
        return list(self._places)

    def header(self, name: str) -> TensorHeader:
        file, stored = self._place(name)
        return file.header(stored)

    def tensor(self, name: str) -> RawTensor:
        file, stored = self._place(name)
        return file.tensor(stored)

    def _place(self, name: str) -> tuple[TensorFile, str]:
        """The tensor's file, and its name there."""
        place = self._places.get(name)
        if place is None:
            raise ModelError(f"{self.directory}: has no tensor {name}")
        return place


def open_folder(checkpoint: str, folder: str) -> Callable[[str], RawTensor]:
    """Reads the tensors of a folder inside a checkpoint by name. Raises ModelError."""
    directory = Path(checkpoint) / folder
    places = open_all(directory, INDEX, weight_files, SafetensorsFile)

    def read(name: str) -> RawTensor:
        if name not in places:
            raise ModelError(f"{directory}: has no tensor {name}")
        return places[name].tensor(name)

    return read


def open_all(
    directory: Path,
    index_name: str,
    unlisted: Callable[[Path], list[Path]],
    open_file: Callable[[Path], F],
) -> dict[str, F]:
    """Tensor name → its file. The index, if there is one, must agree with the files; without one,
    `unlisted` finds them."""
    index = directory / index_name
    expected = _weight_map(index) if index.is_file() else None
    if expected is None:
        files = unlisted(directory)
    else:
        files = [directory / name for name in sorted(set(expected.values()))]
    places: dict[str, F] = {}
    for path in files:
        file = open_file(path)
        for name in file.names():
            if name in places:
                raise ModelError(f"{path}: tensor {name} is in {places[name].path.name} too")
            places[name] = file
    if expected is not None:
        for name, file_name in expected.items():
            if name not in places or places[name].path.name != file_name:
                raise ModelError(f"{index}: {file_name} should hold {name}, but does not")
    return places


def weight_files(directory: Path) -> list[Path]:
    """The safetensors of a directory without an index; PyTorch files are refused by name."""
    files = sorted(directory.glob("*.safetensors"))
    files = [path for path in files if not path.name.startswith(("adapter_", "consolidated"))]
    single = directory / "model.safetensors"
    if single in files:
        return [single]
    if files:
        return files
    raise ModelError(f"{directory}: holds no *.safetensors file")


def _weight_map(index: Path) -> dict[str, str]:
    entries = read_json(index).get("weight_map")
    if not isinstance(entries, dict) or not entries:
        raise ModelError(f"{index}: weight_map is not an object of tensor names")
    for name, file in entries.items():
        if not isinstance(file, str) or Path(file).name != file or not file:
            raise ModelError(f"{index}: the file of tensor {name} is {file!r}")
    return entries


def _sizes(value: Any) -> list[int] | None:
    """`value`, if it is a list of sizes."""
    if not isinstance(value, list):
        return None
    for n in value:
        if isinstance(n, bool) or not isinstance(n, int) or not 0 <= n < 2**53:
            return None
    return value


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a name appears twice")
    return entries
