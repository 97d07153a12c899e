"""Packed weights on disk: made at a model's first start, mapped at the next.

    GALLEY_CACHE_DIR | $VLLM_CACHE_ROOT/galley | $XDG_CACHE_HOME/galley | ~/.cache/galley
        weights/<name>-<place>-<key>.packed

The key covers what the bytes depend on: the checkpoint's files (name, size, time of change) and its
config with --hf-overrides, the kernels' library, the number format. A file that is of another key
or damaged is passed over and made anew; a disk that is full or read-only means no cache, nothing
else.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from galley.config import ModelInfo
from galley.kernels import _native
from galley.kernels.backend import Backend, Dense
from galley.kernels.ops import Constant, Weight
from galley.layers.weights import CheckpointWeights, GateUp, Part
from galley.runner.packed_file import Answer, PackedFile, write_answers

log = logging.getLogger(__name__)

VERSION = 1
#: Smaller models are packed in no time.
LEAST_BYTES = 16 * 2**20
#: An unfinished file of this age has no writer any more.
ABANDONED_AFTER_S = 3600
#: Of the disk, so much stays free.
SPARE_BYTES = 2 * 2**30


class CacheMiss(Exception):
    """A file of packed weights does not hold what the model asks for."""


def _question(kind: str, parts: Sequence[Part]) -> str:
    return kind + "".join(f" {part.name}{list(part.shape)}" for part in parts)


class _Source(ABC):
    """A `WeightSource` that answers for matrices by `_matrices` and passes on the rest.

    Gate and up with biases are passed on too: their biases are woven with them.
    """

    def __init__(self, source: CheckpointWeights, backend: Backend) -> None:
        self.group = source.group
        self._source = source
        self._backend = backend

    @abstractmethod
    def _matrices(self, question: str, make: Callable[[], GateUp]) -> GateUp:
        """The answer to `question`; `make` has the checkpoint's own."""

    def rows(self, parts: Sequence[Part]) -> list[Weight]:
        def make() -> GateUp:
            return GateUp(self._source.rows(parts), None, False)

        return self._matrices(_question("rows", parts), make).weights

    def gate_up(self, gate: Part, up: Part, bias: bool) -> GateUp:
        def make() -> GateUp:
            return self._source.gate_up(gate, up, bias)

        return make() if bias else self._matrices(_question("gate_up", [gate, up]), make)

    def columns(self, part: Part) -> list[Weight]:
        def make() -> GateUp:
            return GateUp(self._source.columns(part), None, False)

        return self._matrices(_question("columns", [part]), make).weights

    def table(self, part: Part) -> Weight:
        def make() -> GateUp:
            return GateUp([self._source.table(part)], None, False)

        return self._matrices(_question("table", [part]), make).weights[0]

    def vector(self, name: str, size: int) -> Constant:
        return self._source.vector(name, size)

    def bias(self, parts: Sequence[Part], cut: bool = True) -> Constant:
        return self._source.bias(parts, cut)

    def constant(self, values: NDArray[np.float32]) -> Constant:
        return self._source.constant(values)

    def ignore_unused(self, prefix: str) -> None:
        self._source.ignore_unused(prefix)


class RecordingWeights(_Source):
    """Answers from the checkpoint and remembers what it answered.

    Attributes:
        num_bytes: of the weights so far, as the backend holds them.
    """

    def __init__(self, source: CheckpointWeights, backend: Backend) -> None:
        super().__init__(source, backend)
        self.num_bytes = 0
        self._answers: list[Answer] = []

    def _matrices(self, question: str, make: Callable[[], GateUp]) -> GateUp:
        made = make()
        packed = [self._backend.packed(weight) for weight in made.weights]
        for weight, p in zip(made.weights, packed, strict=True):
            self.num_bytes += 4 * weight.shape[0] * weight.shape[1] if p is None else p.data.nbytes
        whole = [p for p in packed if p is not None]
        if len(whole) == len(packed):
            self._answers.append(Answer(question, whole, made.interleaved))
        return made

    def write(self, path: Path) -> None:
        """Keep the answers in a file, unless they are few or the disk has no room.

        A backend that packs nothing has none.
        """
        if not self._answers or self.num_bytes < LEAST_BYTES:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(path.parent).free < self.num_bytes + SPARE_BYTES:
                log.info("No room for packed weights in %s.", path.parent)
                return
            write_answers(path, self._answers)
            _remove_older(path)
        except OSError as error:
            log.info("Packed weights cannot be kept in %s: %s", path.parent, error)


class StoredWeights(_Source):
    """Answers from a file; raises CacheMiss where the file has no answer."""

    def __init__(self, file: PackedFile, source: CheckpointWeights, backend: Backend) -> None:
        super().__init__(source, backend)
        self._file = file

    def _matrices(self, question: str, make: Callable[[], GateUp]) -> GateUp:
        answer = self._file.answers.get(question)
        if answer is None:
            raise CacheMiss(question)
        weights = [self._backend.from_packed(packed) for packed in answer.weights]
        return GateUp(weights, None, answer.interleaved)


def cache_root(env: Mapping[str, str] = os.environ) -> Path:
    """The folder for what can be made again."""
    if own := env.get("GALLEY_CACHE_DIR"):
        return Path(own)
    if shared := env.get("VLLM_CACHE_ROOT"):
        return Path(shared) / "galley"
    return Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "galley"


def cache_path(model_info: ModelInfo, backend: Backend, dense: Dense) -> Path | None:
    """Where the packed weights of a checkpoint are kept; None where there is no file to pack.

    The name begins alike for all keys of one checkpoint, so that an old one can be removed.
    """
    source = Path(model_info.source)
    if source.is_file():  # a split GGUF model's parts lie side by side
        files = sorted(source.parent.glob(source.name.replace("-00001-of-", "-*-of-")))
    else:
        files = sorted(source.glob("*.safetensors"))
    if not model_info.source or not files:
        return None
    place = hashlib.sha256(f"{source.resolve()} {backend.name} {dense}".encode())
    key = hashlib.sha256(Path(_native.__file__).read_bytes())
    key.update(f"{VERSION} {backend.interleave_gate_up}".encode())
    key.update(json.dumps(model_info.hf_config, sort_keys=True, default=str).encode())
    for file in files:
        stat = file.stat()
        key.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    name = f"{source.stem}-{place.hexdigest()[:12]}-{key.hexdigest()[:20]}.packed"
    return cache_root() / "weights" / name


def _remove_older(path: Path) -> None:
    """Remove what an earlier state of the same checkpoint left, and what a crash left half-made."""
    same_place = path.name.rsplit("-", 1)[0]
    for other in path.parent.glob("*.packed"):
        if other != path and other.name.rsplit("-", 1)[0] == same_place:
            other.unlink(missing_ok=True)
    for part in path.parent.glob("*.part"):
        if time.time() - part.stat().st_mtime > ABANDONED_AFTER_S:
            part.unlink(missing_ok=True)
