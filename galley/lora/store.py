"""Packed adapters as files of a private folder, from which workers map them.

A file's name is the number of the adapter's *load*, made of its contents: the same weights always
have the same number, others never do. So all processes agree on it, a request that is sent to a
restarted engine finds the weights that it began with, and a block of the KV cache computed with
them is found again, whenever they are loaded.

    magic | I, O, C, bf16 (int64) | ranks (int64) [I] | gains and shifts it has (int64) [O]
    | whole matrices it has (int64) [C] | scales (float32) [I] | padding | data
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from galley.errors import ModelError
from galley.kernels.adapters import ALIGNMENT, AdapterShape, PackedAdapter

_MAGIC = b"GALLEYA4"


def load_number(adapter: PackedAdapter) -> int:
    """The number of the adapter's load: positive, 62 bits."""
    digest = hashlib.sha256(_header(adapter))
    digest.update(adapter.data.data)
    return int.from_bytes(digest.digest()[:8], "big") >> 2 or 1


class AdapterFolder:
    """The files.

    Args:
        path: of a folder of these processes alone; it is made when it is first written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, adapter: PackedAdapter) -> int:
        """Write the adapter, unless it is there. Returns its load number."""
        with self.written(adapter) as add:
            return add()

    @contextmanager
    def written(self, adapter: PackedAdapter) -> Iterator[Callable[[], int]]:
        """Write the adapter to a file of its own. Gives the function that then adds it, which takes
        no time, and returns its load number."""
        load = load_number(adapter)
        self.path.mkdir(mode=0o700, exist_ok=True)
        fd, name = tempfile.mkstemp(dir=self.path, suffix=".part")

        def add() -> int:
            target = self.path / str(load)
            if not target.exists():
                Path(name).rename(target)
            return load

        try:
            with os.fdopen(fd, "wb") as file:
                file.write(_header(adapter))
                file.write(adapter.data.data)
            yield add
        finally:
            Path(name).unlink(missing_ok=True)

    def map(self, load: int, shape: AdapterShape) -> PackedAdapter:
        """The adapter, mapped. Raises ModelError if it is not there, or of another model."""
        path = self.path / str(load)
        try:
            raw = np.memmap(path, np.uint8, mode="r")
        except (OSError, ValueError):
            raise ModelError("the adapter is not loaded any more") from None
        return _parsed(np.asarray(raw), shape)

    def remove(self, load: int) -> None:
        """Remove the file; processes that have mapped it keep it."""
        (self.path / str(load)).unlink(missing_ok=True)


def _header(adapter: PackedAdapter) -> bytes:
    shape = adapter.shape
    counts = len(shape.k), len(shape.n), len(shape.copies), adapter.bf16
    head = _MAGIC + np.array(counts, np.int64).tobytes() + adapter.ranks.tobytes()
    head += adapter.has_affine.tobytes() + adapter.copied.tobytes() + adapter.scales.tobytes()
    return head + b"\0" * (-len(head) % ALIGNMENT)


def _parsed(raw: np.ndarray[tuple[int], np.dtype[np.uint8]], shape: AdapterShape) -> PackedAdapter:
    num_inputs, num_copies = len(shape.k), len(shape.copies)
    start = len(_MAGIC) + 32
    affine_at = start + 8 * num_inputs
    copied_at = affine_at + 8 * len(shape.n)
    scales_at = copied_at + 8 * num_copies
    end = scales_at + 4 * num_inputs
    data_start = -(-end // ALIGNMENT) * ALIGNMENT
    if len(raw) < data_start or raw[: len(_MAGIC)].tobytes() != _MAGIC:
        raise ModelError("the adapter's file is damaged")
    inputs, outputs, copies, bf16 = raw[len(_MAGIC) : start].view(np.int64).tolist()
    if (inputs, outputs, copies) != (num_inputs, len(shape.n), num_copies):
        raise ModelError("the adapter is of another model")
    ranks = raw[start:affine_at].view(np.int64)
    has_affine = raw[affine_at:copied_at].view(np.int64)
    copied = raw[copied_at:scales_at].view(np.int64)
    scales = raw[scales_at:end].view(np.float32)
    data = raw[data_start:]
    adapter = PackedAdapter.over(shape, ranks, scales, has_affine, copied, bool(bf16), data)
    if adapter is None:
        raise ModelError("the adapter's file is damaged")
    return adapter
