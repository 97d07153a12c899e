"""A file of packed weights: written whole, mapped and proven whole before use.

    file:  magic | length of header | crc of header | header (JSON) | padding | data
    data:  one packed weight after the other, each at a multiple of 64 bytes

Knows nothing of checkpoints: what it holds are the answers to a model's questions, by their text.
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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from galley.kernels.weights import PackedWeight, WeightFormat

log = logging.getLogger(__name__)

MAGIC = b"galleypw"
_LENGTHS = struct.Struct("<QI")
_ALIGNMENT = 64


@dataclass(frozen=True, eq=False)
class Answer:
    """The weights that one question of a layer was answered with."""

    question: str
    weights: list[PackedWeight]
    interleaved: bool = False


@dataclass(frozen=True, eq=False)
class PackedFile:
    """A mapped file of packed weights, proven whole.

    Attributes:
        num_bytes: of its weights.
    """

    answers: Mapping[str, Answer]
    num_bytes: int

    @staticmethod
    def open(path: Path) -> PackedFile | None:
        """Map the file; None if there is none, or if it is damaged."""
        try:
            with path.open("rb") as f:
                mapped = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):
            return None
        try:
            return _read(np.frombuffer(mapped, np.uint8))
        except (ValueError, LookupError, TypeError, struct.error, RecursionError) as error:
            log.warning("%s is damaged and will be made anew: %s", path, error)
            return None


def write_answers(path: Path, answers: Sequence[Answer]) -> None:
    """Make the file, or leave what was there: it appears whole or not at all. Raises OSError."""
    at, crc, entries = 0, 0, []
    arrays = [packed.data for answer in answers for packed in answer.weights]
    for answer in answers:
        weights = []
        for packed in answer.weights:
            weights.append({"format": asdict(packed.format), "shape": list(packed.shape), "at": at})
            at += _padded(packed.data.nbytes)
        entries.append([answer.question, answer.interleaved, weights])
    for data in arrays:
        crc = zlib.crc32(data.data, crc)
    header = json.dumps({"bytes": at, "crc": crc, "answers": entries}).encode()
    temporary = tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False)  # noqa: SIM115
    try:
        with temporary as f:
            start = MAGIC + _LENGTHS.pack(len(header), zlib.crc32(header)) + header
            f.write(start.ljust(_padded(len(start)), b"\0"))
            for data in arrays:
                f.write(data.data)
                f.write(bytes(_padded(data.nbytes) - data.nbytes))
        os.replace(temporary.name, path)
    except OSError:
        os.unlink(temporary.name)
        raise


def _read(whole: NDArray[np.uint8]) -> PackedFile:
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
        raise ValueError(f"{len(data)} bytes of weights where {header['bytes']} are needed")
    answers, crc, total = {}, 0, 0
    for question, interleaved, entries in header["answers"]:
        weights = [_weight(data, entry) for entry in entries]
        for packed in weights:
            crc = zlib.crc32(packed.data.data, crc)
            total += packed.data.nbytes
        answers[question] = Answer(question, weights, interleaved)
    if crc != header["crc"]:
        raise ValueError("its weights are not what was written")
    return PackedFile(answers, total)


def _weight(data: NDArray[np.uint8], entry: dict[str, Any]) -> PackedWeight:
    fmt = WeightFormat(**entry["format"])
    n, k = entry["shape"]
    if {type(n), type(k), type(fmt.group)} != {int} or not isinstance(fmt.has_min, bool):
        raise ValueError("a weight's sizes are not whole numbers")
    size = fmt.layout((n, k)).bytes
    return PackedWeight(fmt, (n, k), data[entry["at"] : entry["at"] + size])


def _padded(n: int) -> int:
    return -(-n // _ALIGNMENT) * _ALIGNMENT
