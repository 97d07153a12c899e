"""A file of packed weights: written atomically, mapped, and verified before use.

    file:  magic | length of header | crc of header | header (JSON) | padding | data
    data:  one packed weight after the other, each at a multiple of 64 bytes

The header's checksum is verified at every open, the data's once per boot, on all cores, unless the
file was written in that boot (`checksum_cache`).

Knows nothing of checkpoints: the file maps the text of a matrix's spec to its weights.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import struct
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from galley.kernels.weight_format import WeightFormat
from galley.kernels.weights import PackedWeight
from galley.runner.cache_files import lock_shared
from galley.runner.checksum_cache import file_state, is_verified, mark_verified
from galley.runner.large_pages import use_large_pages

log = logging.getLogger(__name__)

MAGIC = b"galleypw"
_LENGTHS = struct.Struct("<QI")
_ALIGNMENT = 64
#: Checksums of at least so many bytes are computed by several threads.
MIN_BYTES_FOR_THREADS = 64 << 20
#: The file is written and mapped so that the system can keep it in pages of this size.
HUGE_PAGE = 2 << 20


class PackedMatrix(msgspec.Struct, frozen=True, eq=False):
    """A matrix of a layer by the text of its spec, and its weights: one per format of its parts."""

    spec: str
    weights: list[PackedWeight]


class PackedFile(msgspec.Struct, frozen=True, eq=False):
    """A mapped and verified file of packed weights.

    Attributes:
        num_bytes: size of its weights.
    """

    matrices: Mapping[str, PackedMatrix]
    num_bytes: int

    @staticmethod
    def open(path: Path) -> PackedFile | None:
        """Map the file; None if there is none, or if it is damaged."""
        try:
            with path.open("rb") as f:
                lock_shared(f.fileno())  # held by the mapping, which duplicates the descriptor
                status = os.fstat(f.fileno())
                mapped = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
                use_large_pages(mapped)
        except (OSError, ValueError):
            return None
        try:
            content = _read(np.frombuffer(mapped, np.uint8))
            state = file_state(status, content.header_crc)
            if not is_verified(path, state):
                _verify(content)
                mark_verified(path, state)
            return content.file
        except (ValueError, LookupError, TypeError, struct.error, RecursionError) as error:
            log.warning("%s is damaged and will be rebuilt: %s", path, error)
            return None


def write_packed(path: Path, matrices: Sequence[PackedMatrix]) -> int:
    """Write the file atomically; an existing file stays until then. Returns the checksum of its
    header. Raises OSError."""
    offset, entries = 0, []
    arrays = [packed.data for matrix in matrices for packed in matrix.weights]
    for matrix in matrices:
        weights = []
        for packed in matrix.weights:
            fmt, shape = msgspec.structs.asdict(packed.format), list(packed.shape)
            crc = zlib.crc32(packed.data.data)
            weights.append({"format": fmt, "shape": shape, "at": offset, "crc": crc})
            offset += _padded(packed.data.nbytes)
        entries.append([matrix.spec, weights])
    header = json.dumps({"bytes": offset, "matrices": entries}).encode()
    temporary = tempfile.NamedTemporaryFile(  # noqa: SIM115
        buffering=HUGE_PAGE, dir=path.parent, suffix=".part", delete=False
    )
    try:
        with temporary as f:
            checksum = zlib.crc32(header)
            start = MAGIC + _LENGTHS.pack(len(header), checksum) + header
            _write(f, start.ljust(_padded(len(start)), b"\0"))
            for data in arrays:
                _write(f, data.data)
                _write(f, bytes(_padded(data.nbytes) - data.nbytes))
        os.replace(temporary.name, path)
    except BaseException:
        os.unlink(temporary.name)
        raise
    return checksum


def _write(file: IO[bytes], data: bytes | memoryview) -> None:
    """Write in pieces that end at multiples of HUGE_PAGE, so that the file's buffer of that size is
    flushed there: the system keeps in one large page what one write covers whole."""
    while data:
        piece = HUGE_PAGE - file.tell() % HUGE_PAGE
        file.write(data[:piece])
        data = data[piece:]


class _Content(NamedTuple):
    """A file's weights, and the checksums of its header and of each weight's data."""

    file: PackedFile
    header_crc: int
    data_crcs: list[int]


def _read(whole: NDArray[np.uint8]) -> _Content:
    fixed = len(MAGIC) + _LENGTHS.size
    head = whole[:fixed].tobytes()
    if not head.startswith(MAGIC):
        raise ValueError("wrong magic")
    length, crc = _LENGTHS.unpack(head[len(MAGIC) :])
    text = whole[fixed : fixed + length].tobytes()
    if len(text) != length or zlib.crc32(text) != crc:
        raise ValueError("its header is incomplete")
    header: dict[str, Any] = json.loads(text)
    data = whole[_padded(fixed + length) :]
    if len(data) != header["bytes"]:
        raise ValueError(f"{len(data)} bytes of weights, expected {header['bytes']}")
    matrices, checksums, total = {}, [], 0
    for spec, entries in header["matrices"]:
        weights = [_weight(data, entry) for entry in entries]
        checksums += [entry["crc"] for entry in entries]
        total += sum(packed.data.nbytes for packed in weights)
        matrices[spec] = PackedMatrix(spec, weights)
    return _Content(PackedFile(matrices, total), crc, checksums)


def _verify(content: _Content) -> None:
    """Raises ValueError if the data of any weight differs from what was written."""
    matrices = content.file.matrices.values()
    data = [packed.data.data for matrix in matrices for packed in matrix.weights]
    if content.file.num_bytes < MIN_BYTES_FOR_THREADS:
        checksums = [zlib.crc32(d) for d in data]
    else:
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            checksums = list(pool.map(zlib.crc32, data))
    if checksums != content.data_crcs:
        raise ValueError("the checksum of its weights does not match")


def _weight(data: NDArray[np.uint8], entry: dict[str, Any]) -> PackedWeight:
    fmt = WeightFormat(**entry["format"])
    n, k = entry["shape"]
    if {type(n), type(k)} != {int}:
        raise ValueError("a weight's sizes are not whole numbers")
    size = fmt.num_bytes((n, k))
    return PackedWeight(fmt, (n, k), data[entry["at"] : entry["at"] + size])


def _padded(n: int) -> int:
    return -(-n // _ALIGNMENT) * _ALIGNMENT
