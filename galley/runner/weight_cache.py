"""Packed weights on disk: written at a model's first start, mapped at later ones.

The key covers everything that the bytes depend on: the checkpoint's files (name, size, mtime,
first and last bytes) and its config with --hf-overrides, the kernel library, the number format and
the rank. A file with another key is ignored, a damaged one is rebuilt. A full or read-only disk
means no cache, nothing else. `cache_files` says where the files are and removes old ones.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from galley.config import LoadConfig, ModelInfo
from galley.config.registries import LOAD_FORMAT_ALIASES
from galley.kernels import _native
from galley.kernels.backend import Backend, Dense
from galley.kernels.ops import Constant, RankGroup, SingleRank, Weight
from galley.layers.weight_specs import Matrix, Vector
from galley.layers.weights import L, WeightSource
from galley.loader.tensor import RawTensor
from galley.runner import cache_files
from galley.runner.checksum_cache import mark_when_settled
from galley.runner.packed_file import PackedFile, PackedMatrix, write_packed

log = logging.getLogger(__name__)

VERSION = 6
#: Smaller models are packed quickly enough without a cache.
MIN_BYTES = 16 * 2**20
#: So many bytes at both ends of a file are part of the key: headers, and the last weights.
KEY_BYTES = 64 * 2**10
#: Ends of the names of weight files in a directory.
WEIGHT_ENDS = (".safetensors", ".bin", ".pt", ".pth")


class CacheMiss(Exception):
    """A file of packed weights does not hold what the model asks for."""


class CachedWeights(ABC):
    """A `WeightSource` that makes matrices by `matrix` and delegates the rest."""

    def __init__(self, source: WeightSource, backend: Backend) -> None:
        self.group = source.group
        self.interleave_gate_up = source.interleave_gate_up
        self.sites = source.sites
        self._source = source
        self._backend = backend

    @abstractmethod
    def matrix(self, matrix: Matrix) -> list[Weight]: ...

    def vector(self, vector: Vector) -> Constant:
        return self._source.vector(vector)

    def constant(
        self, shape: tuple[int, ...], compute: Callable[[], NDArray[np.float32]]
    ) -> Constant:
        return self._source.constant(shape, compute)

    def number(self, names: Sequence[str]) -> float | None:
        return self._source.number(names)

    def load(self, read: Callable[[Dense, Mapping[str, RawTensor]], L]) -> L | None:
        return self._source.load(read)

    def ignore_unused(self, prefix: str) -> None:
        self._source.ignore_unused(prefix)


class RecordingWeights(CachedWeights):
    """Takes weights from the source and remembers matrices.

    Attributes:
        num_bytes: size of the weights so far, as the backend holds them.
    """

    def __init__(self, source: WeightSource, backend: Backend) -> None:
        super().__init__(source, backend)
        self.num_bytes = 0
        self._matrices: list[PackedMatrix] = []

    def matrix(self, matrix: Matrix) -> list[Weight]:
        weights = self._source.matrix(matrix)
        packed = [self._backend.packed(weight) for weight in weights]
        for weight, p in zip(weights, packed, strict=True):
            self.num_bytes += 4 * weight.shape[0] * weight.shape[1] if p is None else p.data.nbytes
        cacheable = [p for p in packed if p is not None]
        if len(cacheable) == len(packed):
            self._matrices.append(PackedMatrix(str(matrix), cacheable))
        return weights

    def load(self, read: Callable[[Dense, Mapping[str, RawTensor]], L]) -> L | None:
        loaded = super().load(read)
        self.num_bytes += 0 if loaded is None else loaded.num_bytes
        return loaded

    def write(self, path: Path, limit: int | None = None) -> None:
        """Write the matrices to a file, unless the model is small or there is no room.

        A backend that packs nothing writes no file.

        Args:
            limit: bytes of all cached files together; None: half of the disk.
        """
        if not self._matrices or self.num_bytes < MIN_BYTES:
            return
        folder = path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            remove_older(path)
            if not cache_files.make_room(folder, self.num_bytes, limit):
                log.info("No room for packed weights in %s.", folder)
                return
            mark_when_settled(path, write_packed(path, self._matrices))
            log.info(
                "Packed weights are kept in %s (%.0f MiB): later starts map them (galley cache).",
                folder,
                self.num_bytes / 2**20,
            )
        except OSError as error:
            log.info("Packed weights cannot be written to %s: %s", folder, error)


class StoredWeights(CachedWeights):
    """Takes matrices from a file; raises CacheMiss for one that the file does not hold."""

    def __init__(self, file: PackedFile, source: WeightSource, backend: Backend) -> None:
        super().__init__(source, backend)
        self._file = file

    def matrix(self, matrix: Matrix) -> list[Weight]:
        stored = self._file.matrices.get(str(matrix))
        if stored is None:
            raise CacheMiss(str(matrix))
        return [self._backend.from_packed(packed) for packed in stored.weights]


def configured_path(
    model_info: ModelInfo, backend: Backend, dense: Dense, load: LoadConfig
) -> Path | None:
    """Where the packed weights of a whole checkpoint are kept; None where nothing is to be kept."""
    if not load.weight_cache or load.load_format == "dummy":
        return None
    return cache_path(model_info, backend, dense, load_format=load.load_format)


def cache_path(
    model_info: ModelInfo,
    backend: Backend,
    dense: Dense,
    group: RankGroup | None = None,
    load_format: str = "auto",
) -> Path | None:
    """Where a rank's packed weights of a checkpoint are kept; None if there is no file to pack.

    Names of all keys of one checkpoint and rank have a common prefix, so that older files can be
    removed.
    """
    group = group or SingleRank()
    source = Path(model_info.source)
    if source.is_file():  # the parts of a split GGUF model are in one folder
        files = sorted(source.parent.glob(source.name.replace("-00001-of-", "-*-of-")))
    else:
        # Of every format: a file that is not read costs no more than packing again.
        files = sorted(p for end in WEIGHT_ENDS for p in source.glob(f"*{end}"))
    if not model_info.source or not files:
        return None
    place = hashlib.sha256(
        f"{source.resolve()} {backend.name} {dense} {group.rank}/{group.size} "
        f"{model_info.online} {_form(load_format)}".encode()
    )
    key = hashlib.sha256(_kernels_digest())
    key.update(f"{VERSION} {backend.interleave_gate_up}".encode())
    key.update(json.dumps(model_info.hf_config, sort_keys=True, default=str).encode())
    for file in files:
        stat = file.stat()
        key.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        key.update(_ends(file))
    name = f"{_label(source)}-{place.hexdigest()[:12]}-{key.hexdigest()[:20]}.packed"
    return cache_files.weights_folder() / name


@functools.cache
def _kernels_digest() -> bytes:
    """Of the native module, whose version decides how weights are packed."""
    return hashlib.sha256(Path(_native.__file__).read_bytes()).digest()


def _form(load_format: str) -> str:
    """The kind of weights that is read of a folder with several; "" = the default."""
    name = LOAD_FORMAT_ALIASES.get(load_format, load_format)
    return name if name in ("pt", "mistral") else ""


def remove_older(path: Path) -> None:
    """Remove files of earlier states of the same checkpoint, and partial files left by a crash."""
    same = cache_files.place_of(path)
    files = cache_files.list_files(path.parent)
    cache_files.remove_all(f for f in files if f.path != path and f.place == same)
    cache_files.remove_abandoned(path.parent)


def _label(source: Path) -> str:
    """Name of a model for people: of a hub snapshot its repository, else the file's or folder's."""
    for folder in source.parts[::-1]:
        if folder.startswith("models--"):
            return folder.removeprefix("models--")
    return source.stem if source.suffix == ".gguf" else source.name


def _ends(path: Path) -> bytes:
    """The first and the last bytes of a file."""
    with path.open("rb") as f:
        first = f.read(KEY_BYTES)
        f.seek(max(0, os.fstat(f.fileno()).st_size - KEY_BYTES))
        return first + f.read(KEY_BYTES)
