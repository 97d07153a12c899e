"""PyTorch files (`torch.save`): a zip archive of a pickle and of storages, mapped. Needs no torch.

    NAME/data.pkl       a pickled dictionary of tensors: views of storages (`tensor_pickle`)
    NAME/byteorder      "little", in files of newer releases
    NAME/data/KEY       a storage, not compressed

The pickle is interpreted, never run. Files of releases before 1.6 are no archives: refused.
"""

from __future__ import annotations

import math
import mmap
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from galley.errors import ModelError
from galley.loader.mapped import mapped
from galley.loader.safetensors import (
    DTYPES,
    MAX_DIMS,
    SafetensorsCheckpoint,
    open_all,
)
from galley.loader.source import Source
from galley.loader.tensor import RawTensor, TensorHeader
from galley.loader.tensor_pickle import PickleError, StorageRef, TensorRef, read_tensors

INDEX = "pytorch_model.bin.index.json"
#: A tensor takes about 200 bytes of it.
MAX_PICKLE_BYTES = 64 << 20
_NUMPY = dict(DTYPES.values())
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
#: Files beside the weights that training leaves.
_NOT_WEIGHTS = ("training_args.bin", "optimizer.", "scheduler.", "rng_state", "adapter_")


class TorchFile:
    """One file: its pickle, checked against the storages, and its mapped data."""

    def __init__(self, path: Path) -> None:
        """Raises ModelError naming the file and what is wrong with it."""
        self.path = path
        self._map: mmap.mmap = mapped(path)
        if self._map[:2] != b"PK":
            raise ModelError(f"{path}: {_not_an_archive(self._map[:64])}")
        try:
            with path.open("rb") as file, zipfile.ZipFile(file) as archive:
                records = {info.filename: info for info in archive.infolist()}
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as bad:
            raise ModelError(f"{path}: not a valid zip archive: {bad}") from None
        pickles = [name for name in records if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ModelError(f"{path}: an archive without one data.pkl; not a file of torch.save")
        self._prefix = pickles[0].removesuffix("data.pkl")
        self._records = records
        self._check_byte_order()
        start, size = self._span(records[pickles[0]])
        if size > MAX_PICKLE_BYTES:
            raise ModelError(f"{path}: its pickle is larger than {MAX_PICKLE_BYTES >> 20} MiB")
        try:
            self._tensors = read_tensors(self._map[start : start + size])
        except PickleError as error:
            raise ModelError(f"{path}: {error}") from None
        self._storages: dict[str, tuple[int, int]] = {}
        for name, tensor in self._tensors.items():
            self._check(name, tensor)

    def names(self) -> list[str]:
        return list(self._tensors)

    def header(self, name: str) -> TensorHeader:
        tensor = self._tensors[name]
        return TensorHeader(tensor.shape, tensor.dtype)

    def tensor(self, name: str) -> RawTensor:
        """Mapped; a view that is not contiguous (a transposed one) is copied."""
        tensor = self._tensors[name]
        start, size = self._storages[tensor.storage.key]
        dtype = _NUMPY[tensor.dtype]
        flat = np.frombuffer(self._map, dtype, size // dtype.itemsize, start)[tensor.offset :]
        steps = [stride * dtype.itemsize for stride in tensor.strides]
        if not all(tensor.shape):
            return RawTensor(name, tensor.shape, tensor.dtype, np.empty(tensor.shape, dtype))
        data = np.lib.stride_tricks.as_strided(flat, tensor.shape, steps, writeable=False)
        data = data if data.flags.c_contiguous else np.ascontiguousarray(data)
        return RawTensor(name, tensor.shape, tensor.dtype, data)

    def _check_byte_order(self) -> None:
        record = self._records.get(self._prefix + "byteorder")
        if record is None:
            return
        start, size = self._span(record)
        if size > 16 or self._map[start : start + size] != b"little":
            raise ModelError(f"{self.path}: its numbers are not little-endian")

    def _span(self, record: zipfile.ZipInfo) -> tuple[int, int]:
        """(first byte, length) of a record that is stored as it is. Raises ModelError."""
        where = f"{self.path}: its record {record.filename!r:.80}"
        if record.compress_type != zipfile.ZIP_STORED or record.flag_bits & 1:
            raise ModelError(f"{where} is compressed or encrypted")
        at, total = record.header_offset, len(self._map)
        if not 0 <= at <= total - _LOCAL_HEADER.size:
            raise ModelError(f"{where} lies outside the file")
        fields = _LOCAL_HEADER.unpack_from(self._map, at)
        start = at + _LOCAL_HEADER.size + fields[-2] + fields[-1]
        size = record.file_size
        if fields[0] != b"PK\3\4" or size != record.compress_size or start + size > total:
            raise ModelError(f"{where} lies outside the file or is damaged")
        return start, size

    def _check(self, name: str, tensor: TensorRef) -> None:
        """The tensor lies within its storage, and the storage within the file."""
        where = f"{self.path}: tensor {name!r:.120}"
        size = self._storage(where, tensor.storage)
        shape, strides = tensor.shape, tensor.strides
        count = size // _NUMPY[tensor.dtype].itemsize
        if len(shape) > MAX_DIMS or len(shape) != len(strides):
            raise ModelError(f"{where}: has {len(shape)} sizes and {len(strides)} strides")
        if min((*shape, *strides, tensor.offset)) < 0:
            raise ModelError(f"{where}: has a negative size, stride or offset")
        last = sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if not all(shape):
            last = -1
        if math.prod(shape) > count or tensor.offset + last >= count or tensor.offset > count:
            raise ModelError(
                f"{where}: shape {list(shape)!r:.80} with strides {list(strides)!r:.80} from "
                f"{tensor.offset} reads beyond its storage of {count} numbers, or repeats them"
            )

    def _storage(self, where: str, storage: StorageRef) -> int:
        """Bytes of a storage."""
        if storage.key not in self._storages:
            record = self._records.get(f"{self._prefix}data/{storage.key}")
            if record is None:
                raise ModelError(f"{where}: the file has no storage {storage.key!r:.40}")
            self._storages[storage.key] = self._span(record)
        size = self._storages[storage.key][1]
        if size != storage.count * _NUMPY[storage.dtype].itemsize:
            raise ModelError(
                f"{where}: its storage has {size} bytes, but should have {storage.count!r:.40} "
                f"numbers of {storage.dtype}"
            )
        return size


def _not_an_archive(head: bytes) -> str:
    if head.startswith((b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", b"\x80\x02", b"\x80\x04")):
        return (
            "written in PyTorch's format before release 1.6, which is not supported; load it with "
            "torch and save it again, or convert it to safetensors"
        )
    return "not a PyTorch file (a zip archive of torch.save)"


def torch_files(directory: Path) -> list[Path]:
    """The PyTorch weights of a directory without an index. Raises ModelError if it has none."""
    files = sorted({*directory.glob("*.bin"), *directory.glob("*.pt"), *directory.glob("*.pth")})
    files = [path for path in files if not path.name.startswith(_NOT_WEIGHTS)]
    single = directory / "pytorch_model.bin"
    if not files:
        raise ModelError(f"{directory}: holds no weights: neither *.safetensors nor *.bin nor *.pt")
    return [single] if single in files else files


class TorchCheckpoint(SafetensorsCheckpoint):
    """The PyTorch files of a Hugging Face directory."""

    @staticmethod
    def open(source: Source) -> TorchCheckpoint:
        """For the load format "pt"."""
        return TorchCheckpoint(source.path, source.changes)

    def _open_files(self, directory: Path) -> Mapping[str, TorchFile]:
        return open_all(directory, INDEX, torch_files, TorchFile)
