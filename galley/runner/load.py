"""Loads a model: from a checkpoint to weights that a backend holds.

The first start packs every weight and writes the packed ones to disk (`weight_cache`); later starts
map them. Knows no family and no format.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from galley.config import ModelInfo
from galley.kernels.backend import Backend, Model
from galley.kernels.ops import RankGroup
from galley.layers.shapes import ShapeSource
from galley.layers.sites import Sites
from galley.layers.weights import CheckpointWeights
from galley.loader import Checkpoint, RawTensor, tensor_bytes
from galley.loader.tensor import TensorHeader
from galley.models.decoder import Stage
from galley.models.registry import build_model
from galley.runner.cache_files import mark_used
from galley.runner.heap import share_one_heap
from galley.runner.packed_file import PackedFile
from galley.runner.weight_cache import CacheMiss, RecordingWeights, StoredWeights

log = logging.getLogger(__name__)

#: While a model is packed, so much of its checkpoint's size may be in memory beside what is packed:
#: one part in so many.
SPARE_PART = 16
#: Called with (bytes done, bytes in all) of a checkpoint's tensors while a model is loaded.
Progress = Callable[[int, int], None]


#: Larger models are written to the cache while they serve already.
BACKGROUND_BYTES = 256 * 2**20


class LoadedModel(msgspec.Struct, frozen=True):
    """A model with its weights.

    Attributes:
        weight_bytes: memory of the weights as the backend holds them.
        from_cache: packed weights were mapped from disk, not packed.
        sites: linear layers that adapters may add to.
    """

    model: Model
    weight_bytes: int
    from_cache: bool
    sites: Sites


class _Counting:
    """A checkpoint that reports how much of it has been read; several threads may read."""

    def __init__(self, checkpoint: Checkpoint, progress: Progress) -> None:
        self.model_info = checkpoint.model_info
        self._checkpoint = checkpoint
        self._progress = progress
        self._left = {name: tensor_bytes(checkpoint.header(name)) for name in checkpoint.names()}
        self._done, self._total = 0, sum(self._left.values())
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        return self._checkpoint.names()

    def header(self, name: str) -> TensorHeader:
        return self._checkpoint.header(name)

    def tensor(self, name: str) -> RawTensor:
        with self._lock:
            size = self._left.pop(name, 0)
            if size:
                self._done += size
                self._progress(self._done, self._total)
        return self._checkpoint.tensor(name)


def load_model(
    model_info: ModelInfo,
    checkpoint: Checkpoint,
    backend: Backend,
    stage: Stage,
    cached: Path | None = None,
    progress: Progress | None = None,
    group: RankGroup | None = None,
    cache_size: int | None = None,
    threads: int = 1,
) -> LoadedModel:
    """Build the model from its checkpoint; every tensor must be used or ignored by name.

    Args:
        cached: file that packed weights are mapped from, or else written to; None = neither.
        progress: called with (bytes done, bytes in all) of the checkpoint's tensors.
        group: the ranks that share the model; default: one.
        cache_size: bytes that all cached files may have; None: half of the disk.
        threads: that read and pack at the same time.

    Raises ModelError naming what is missing, unused, misshapen or unsupported.
    """
    counted: Checkpoint = _Counting(checkpoint, progress) if progress else checkpoint
    if cached is not None and (stored := PackedFile.open(cached)) is not None:
        try:
            source = StoredWeights(stored, CheckpointWeights(counted, backend, group), backend)
            model = build_model(model_info, source, stage)
            mark_used(cached)
            return LoadedModel(model, stored.num_bytes, True, source.sites)
        except CacheMiss as miss:
            log.info(
                "Packed weights in %s belong to other model code (no %s): packing again.",
                cached,
                miss,
            )
    weights = CheckpointWeights(counted, backend, group)
    if threads > 1:
        share_one_heap()
        shapes = ShapeSource(group, backend.interleave_gate_up)
        build_model(model_info, shapes, stage)
        size = sum(tensor_bytes(checkpoint.header(name)) for name in checkpoint.names())
        weights.make_ahead(shapes.matrices, threads, size // SPARE_PART)
    recording = RecordingWeights(weights, backend)
    model = build_model(model_info, recording, stage)
    weights.finish()
    if cached is not None:
        _write(recording, cached, cache_size)
    return LoadedModel(model, recording.num_bytes, False, recording.sites)


def _write(weights: RecordingWeights, path: Path, limit: int | None) -> None:
    """Write a cache file: at once, or of a large model in a thread that the process waits for at
    its end."""
    if weights.num_bytes < BACKGROUND_BYTES:
        weights.write(path, limit)
        return

    def write() -> None:
        with contextlib.suppress(OSError):  # steps come first
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        weights.write(path, limit)

    threading.Thread(target=write, name="weight cache").start()
