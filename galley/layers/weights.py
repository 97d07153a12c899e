"""Weights of a model's layers: read from a checkpoint, cut to this rank's share, made by a backend.

`WeightSource` makes weights from their specs; `CheckpointWeights` makes them from a checkpoint.
Every tensor of the checkpoint must be used or ignored by name; any other is an error.
"""

from __future__ import annotations

import logging
import math
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from itertools import groupby
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from galley.errors import ModelError
from galley.kernels.backend import Backend, Dense
from galley.kernels.ops import Constant, RankGroup, SingleRank, Weight
from galley.kernels.weights import PackedWeight
from galley.layers.sites import Sites
from galley.layers.weight_specs import (
    Matrix,
    Part,
    Stack,
    Vector,
    interleaved,
    parts_of,
    share_of,
)
from galley.loader.tensor import Checkpoint, RawTensor
from galley.quant import (
    BLOCKS,
    WIDENED,
    ExpertScheme,
    QuantizedWeight,
    concat_rows,
    interleave_rows,
    online_of,
    read_weight,
    scheme_of,
    to_float32,
)

log = logging.getLogger(__name__)

#: Tensors that are not weights: of old checkpoints, and scales of a KV cache that are not read.
NOT_WEIGHTS = re.compile(
    r"rotary_emb\.inv_freq$|\.masked_bias$|\.(attn|attention)\.bias$|\.q_scale$"
    r"|\.[kv]_zero_point$|\.[qkv]_proj\.output_scale$"
)

#: Bytes for each number of a matrix while it is read: codes, a copy in order of rows, scales.
_BYTES_UNPACKED = 4
#: Threads beyond those that pack at the same time. A tokenizer that is made meanwhile holds the
#: interpreter's lock for 0.3 s: so long, cores are busy only with packing that has begun.
_MORE_THREADS = 8

#: How many names an error lists before it says "and n more".
MAX_NAMES_SHOWN = 8


class Loaded(Protocol):
    """A model that was loaded by other code than layers."""

    @property
    def num_bytes(self) -> int:
        """Memory of its weights."""


L = TypeVar("L", bound=Loaded)


class WeightSource(Protocol):
    """Makes a layer's weights from their specs: handles of its backend, of this rank's share.

    Attributes:
        interleave_gate_up: the backend fuses the activation to a product whose gate and up outputs
            are interleaved.
        sites: linear layers that have been built.
    """

    group: RankGroup

    @property
    def sites(self) -> Sites: ...

    @property
    def interleave_gate_up(self) -> bool: ...

    def matrix(self, matrix: Matrix) -> list[Weight]:
        """The matrix in order of its outputs, one Weight per run of parts whose formats agree.

        Interleaved parts of one format are one Weight. Parts of two formats cannot be interleaved:
        they are two Weights, one after the other.

        Of experts it is one Weight each; or, where parts cannot be interleaved, one for each expert
        and part: all first parts, then all second ones.

        Raises ModelError naming a tensor that is missing or has another shape.
        """

    def vector(self, vector: Vector) -> Constant:
        """The vector as float32. Raises ModelError as `matrix` does."""

    def constant(
        self, shape: tuple[int, ...], compute: Callable[[], NDArray[np.float32]]
    ) -> Constant:
        """Numbers that are computed, not loaded; `compute` is called if they are needed."""

    def number(self, names: Sequence[str]) -> float | None:
        """The only number of the first tensor of these that there is; None if there is none.

        Raises ModelError for a tensor of more, and a number that is not finite and positive.
        """

    def load(self, read: Callable[[Dense, Mapping[str, RawTensor]], L]) -> L | None:
        """The whole model, by code that reads the tensors itself: `read(dense, tensors by name)`.
        None where only shapes are known."""

    def ignore_unused(self, prefix: str) -> None:
        """Names that begin so may stay in the checkpoint unused."""


class CheckpointWeights:
    """A `WeightSource` over a checkpoint, a backend and a rank group."""

    def __init__(
        self, checkpoint: Checkpoint, backend: Backend, group: RankGroup | None = None
    ) -> None:
        self.group: RankGroup = group or SingleRank()
        self.sites = Sites()
        self._checkpoint = checkpoint
        self._backend = backend
        self._scheme = scheme_of(checkpoint.model_info)
        self._online = online_of(checkpoint.model_info)
        self._names = frozenset(checkpoint.names())
        self._widened: set[str] = set()
        self._made_dense: set[str] = set()  # such codes, for the log
        self._layers = frozenset(name.rpartition(".")[0] for name in self._names)
        self._unused = set(self._names)
        #: Of tensors that are used in parts: the parts.
        self._used_parts: dict[str, set[Part]] = defaultdict(set)
        self._lock = threading.Lock()
        #: Layers that ask for the same matrix share its weights.
        self._made: dict[Matrix, list[Weight]] = {}

    @property
    def interleave_gate_up(self) -> bool:
        return self._backend.interleave_gate_up

    def matrix(self, matrix: Matrix) -> list[Weight]:
        weights = self._made.get(matrix)
        if weights is None:
            weights = self._made[matrix] = self._make(matrix)
        return weights

    def make_ahead(self, matrices: Iterable[Matrix], threads: int, spare: int) -> None:
        """Make weights that will be asked for, several at a time. Raises ModelError as `matrix`.

        Args:
            spare: bytes of memory for what is not packed yet; a matrix that needs more is made by
                itself.
        """
        limit = _ByteLimit(spare)

        def make(matrix: Matrix) -> list[Weight]:
            with limit.taken(self._unpacked_bytes(matrix)):
                return self._make(matrix)

        wanted = [matrix for matrix in dict.fromkeys(matrices) if matrix not in self._made]
        with ThreadPoolExecutor(threads + _MORE_THREADS) as pool:
            futures = [pool.submit(make, matrix) for matrix in wanted]
            try:
                for matrix, future in zip(wanted, futures, strict=True):
                    self._made[matrix] = future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _unpacked_bytes(self, matrix: Matrix) -> int:
        """Memory for the matrix while it is made. Blocks of a file are packed where they lie."""
        names = [f"{part.name}.weight" for part in matrix.parts]
        if all(self.has(name) and self._checkpoint.header(name).dtype in BLOCKS for name in names):
            return 0
        return _BYTES_UNPACKED * matrix.num_inputs * matrix.num_outputs

    def _make(self, matrix: Matrix) -> list[Weight]:
        # One expert after the other: of what is not packed yet, one is in memory.
        read = lru_cache(maxsize=2)(self._read)  # parts of a fused tensor are read once
        weights = [self._packed(parts, matrix, read) for parts in parts_of(matrix)]
        if not matrix.experts:
            return weights[0]
        if any(len(w) != len(weights[0]) for w in weights):
            raise ModelError(f"formats of {matrix.parts[0].name} differ between experts")
        return [weight for kind in zip(*weights, strict=True) for weight in kind]

    def _packed(
        self, parts: tuple[Part, ...], matrix: Matrix, read: Callable[..., QuantizedWeight]
    ) -> list[Weight]:
        shares = [self._share(part, matrix, read) for part in parts]
        if matrix.interleave and shares[0].format == shares[1].format:
            joined = [interleave_rows(shares[0], shares[1], matrix.interleave)]
        elif matrix.experts:
            joined = shares
        else:
            runs = [list(run) for _, run in groupby(shares, key=lambda share: share.format)]
            joined = [concat_rows(run) for run in runs]
        held = [self._backend.weight(weight, matrix.float32) for weight in joined]
        for weight, as_held in zip(joined, held, strict=True):
            if (
                weight.q is not None
                and isinstance(as_held, PackedWeight)
                and as_held.format.is_dense
            ):
                self._made_dense.add(f"{weight.bits} bits in groups of {weight.group}")
        return held

    def vector(self, vector: Vector) -> Constant:
        values = np.concatenate(
            [
                interleaved([self._numbers(part, vector.cut) for part in parts], vector.interleave)
                for parts in parts_of(vector)
            ]
        )
        if vector.rows:
            values = values[list(vector.rows)]
        return self._backend.constant(values + np.float32(vector.plus) if vector.plus else values)

    def constant(
        self, shape: tuple[int, ...], compute: Callable[[], NDArray[np.float32]]
    ) -> Constant:
        values = compute()
        assert values.shape == shape
        return self._backend.constant(values)

    def number(self, names: Sequence[str]) -> float | None:
        for name in names:
            if name not in self._names:
                continue
            shape = self.shape(name)
            values = to_float32(self.use(name, shape)) if math.prod(shape) == 1 else np.zeros(0)
            if values.size != 1 or not 0 < values.item() < math.inf:
                raise ModelError(f"tensor {name}, of shape {list(shape)}, is not a positive number")
            return float(values.item())
        return None

    def load(self, read: Callable[[Dense, Mapping[str, RawTensor]], L]) -> L:
        self._unused.clear()
        return read(self._backend.dense, _Tensors(self._checkpoint))

    def ignore_unused(self, prefix: str) -> None:
        self._unused = {name for name in self._unused if not name.startswith(prefix)}

    def finish(self) -> None:
        """Call once the model is built. Raises ModelError if a tensor or its rows are unused."""
        if self._widened:
            log.info(
                "%s: kernels read no codebooks, so these weights are held as 4-bit codes in a table"
                " of their values: exact, but larger than the file",
                ", ".join(sorted(self._widened)),
            )
        if self._made_dense:
            log.info(
                "%s: kernels have groups of 16, of multiples of 32 and of all inputs, so these"
                " weights are held as %s, which is larger than the file",
                ", ".join(sorted(self._made_dense)),
                "float32" if self._backend.dense == "f32" else "bfloat16",
            )
        unused = sorted(name for name in self._unused if not NOT_WEIGHTS.search(name))
        if unused:
            shown = ", ".join(unused[:MAX_NAMES_SHOWN])
            more = len(unused) - MAX_NAMES_SHOWN
            shown += f" and {more} more" if more > 0 else ""
            raise ModelError(f"the checkpoint has tensors that the model does not: {shown}")
        for name, parts in self._used_parts.items():
            rows = min(part.shape[0] for part in parts)
            used = sum(part.rows_taken for part in parts)
            if used < rows:
                raise ModelError(f"the model uses {used} of the {rows} rows of tensor {name}")

    def _share(
        self, part: Part, matrix: Matrix, read: Callable[..., QuantizedWeight]
    ) -> QuantizedWeight:
        """This rank's share of a part."""
        if part.otherwise is not None and part.name not in self._layers:
            part = part.otherwise
        if part.stack is not None and part.name not in self._layers:
            weight = self._expert(part.stack, part.name, part.shape)
        elif part.taps > 1:
            kernel = to_float32(self.use(f"{part.name}.weight", part.stored_shape))
            weight = QuantizedWeight(dense=kernel.reshape(part.shape))
        else:
            weight = read(part.name, part.shape, part.transposed)
        if part.rows is not None:
            with self._lock:
                self._used_parts[f"{part.name}.weight"].add(part)
        first, last = 0, part.rows_taken
        if matrix.cut == "outputs":
            first, last = self._range(part.name, part.rows_taken)
        if last - first < part.shape[0]:
            weight = weight.take(part.take(first, last))
        if (matrix.dense or part.turned) and weight.dense is None:
            weight = QuantizedWeight(dense=weight.to_float32())
        if part.turned:
            assert weight.dense is not None
            weight = QuantizedWeight(dense=np.ascontiguousarray(weight.dense.T))
        if part.unit_rows:
            weight = _unit_rows(part.name, weight)
        if part.plus is not None:
            row = read(part.plus.name, part.plus.shape, False).to_float32()[part.plus_row]
            weight = QuantizedWeight(dense=weight.to_float32() + row)
        if self._online is not None and not (matrix.dense or matrix.float32):
            weight = self._online(part.name, weight, matrix.experts > 0)
        if matrix.cut == "inputs" and self.group.size > 1:
            weight = weight.columns(*self._range(part.name, part.shape[1]))
        return weight

    def _numbers(self, part: Part, cut: bool) -> NDArray[np.float32]:
        if part.stack is not None and not self.has(part.name):
            raw = self.stacked(part.stack, part.name, part.shape)
        else:
            raw = self.use(part.name, part.shape)
        whole = np.atleast_1d(to_float32(raw))
        if part.rows is not None:
            self._used_parts[part.name].add(part)
        first, last = self._range(part.name, part.num_rows) if cut else (0, part.num_rows)
        return whole[part.take(first, last)]

    def _read(self, name: str, shape: tuple[int, ...], transposed: bool) -> QuantizedWeight:
        """A whole matrix of the checkpoint."""
        n, k = shape
        if not transposed:
            return self._scheme.read(name, (n, k), self)
        weight = self._scheme.read(name, (k, n), self)
        if weight.dense is None:
            raise ModelError(f"{name}: a quantized matrix that is stored transposed")
        return QuantizedWeight(dense=np.ascontiguousarray(weight.dense.T))

    def _expert(self, stack: Stack, name: str, shape: tuple[int, ...]) -> QuantizedWeight:
        """One expert's part of a stack of matrices, dense or as codes."""
        scheme = self._scheme
        if not isinstance(scheme, ExpertScheme) or not scheme.has_experts(stack.name, self):
            return read_weight(self.stacked(stack, name, shape))
        experts, n, k = stack.shape
        if stack.transposed:
            n, k = k, n
        weight = scheme.read_expert(stack.name, (experts, n, k), stack.index, self)
        return weight.take(slice(*stack.outputs))

    def stacked(self, stack: Stack, name: str, shape: tuple[int, ...]) -> RawTensor:
        """One expert's part of a stack, as a tensor called `name`."""
        if stack.name not in self._names:
            raise ModelError(f"the checkpoint has no tensor {name} and no {stack.name}")
        other = stack.turned
        if self.shape(stack.name) == other.shape:  # as other versions of a library save it
            stack = other
        raw = self.use(stack.name, stack.shape)
        if raw.data.shape != raw.shape:
            raise ModelError(f"tensor {stack.name}: experts in one tensor of {raw.dtype}")
        expert = raw.data[stack.index]
        data = (expert.T if stack.transposed else expert)[slice(*stack.outputs)]
        return RawTensor(name, shape, raw.dtype, np.ascontiguousarray(data))

    def has(self, name: str) -> bool:
        """Whether the checkpoint has the tensor."""
        return name in self._names

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor that the checkpoint has; it is not marked as used."""
        return tuple(self._checkpoint.header(name).shape)

    def use(self, name: str, shape: tuple[int, ...]) -> RawTensor:
        """The tensor, marked as used. Raises ModelError if there is none of that name and shape."""
        if name not in self._names:
            raise ModelError(f"the checkpoint has no tensor {name}, of shape {list(shape)}")
        raw = self._checkpoint.tensor(name)
        if tuple(raw.shape) != shape:
            raise ModelError(
                f"tensor {name} has shape {list(raw.shape)}; the config asks for {list(shape)}"
            )
        self._unused.discard(name)
        if raw.dtype in WIDENED:
            self._widened.add(raw.dtype)
        return raw

    def _range(self, name: str, size: int) -> tuple[int, int]:
        """This rank's [start, stop) of `size`."""
        try:
            return share_of(name, size, self.group.rank, self.group.size)
        except ValueError as error:
            raise ModelError(str(error)) from None


class _ByteLimit:
    """Bytes that threads may hold in all: a thread waits for them, unless no other holds any."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._used = 0
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, size: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + size <= self._size)
            self._used += size
        try:
            yield
        finally:
            with self._changed:
                self._used -= size
                self._changed.notify_all()


class _Tensors(Mapping[str, RawTensor]):
    """The tensors of a checkpoint by name, read when they are asked for."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def __getitem__(self, name: str) -> RawTensor:
        return self._checkpoint.tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._checkpoint.names())

    def __len__(self) -> int:
        return len(self._checkpoint.names())


def _unit_rows(name: str, weight: QuantizedWeight) -> QuantizedWeight:
    """The weight with each row divided by its length."""
    if weight.dense is None:
        raise ModelError(f"{name}: a quantized matrix whose rows are to be normalised")
    rows = weight.dense.astype(np.float32)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return QuantizedWeight(dense=(rows / np.maximum(length, 1e-12)).astype(weight.dense.dtype))
