"""Where a layer's weights come from: by Hugging Face name, cut to this rank's share, packed once.

`WeightSource` is what layers ask; `CheckpointWeights` answers from a checkpoint and a backend.
Every name of the checkpoint must be taken or waived, so that nothing is lost in silence.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from galley.errors import ModelError
from galley.kernels.backend import Backend
from galley.kernels.ops import GATE_UP_RUN, Constant, RankGroup, SingleRank, Weight
from galley.loader.tensor import Checkpoint, RawTensor
from galley.quant import (
    QuantizedWeight,
    channel_int8,
    concat_rows,
    interleave_rows,
    read_weight,
    to_float32,
)

#: Tensors that old checkpoints carry and that are no weights.
NOT_WEIGHTS = re.compile(r"rotary_emb\.inv_freq$|\.masked_bias$|\.attn\.bias$")

#: How many names an error lists before it says "and n more".
NAMES_SHOWN = 8


@dataclass(frozen=True)
class Part:
    """One tensor of a linear layer: its name without ".weight", and its [N, K] before cutting."""

    name: str
    shape: tuple[int, int]


@dataclass(frozen=True)
class GateUp:
    """Gate and up projection: outputs gate | up, or both in turn in runs of `GATE_UP_RUN`."""

    weights: list[Weight]
    bias: Constant | None
    interleaved: bool


class WeightSource(Protocol):
    """Answers a layer's questions; every answer is this rank's share, made by the backend.

    All methods raise ModelError naming a tensor that is missing or has another shape.
    """

    group: RankGroup

    def rows(self, parts: Sequence[Part]) -> list[Weight]:
        """Weights of `parts` below each other, outputs cut: one Weight per run of parts whose
        formats agree, in order."""

    def gate_up(self, gate: Part, up: Part, bias: bool) -> GateUp:
        """Both projections, outputs cut, in the order that the backend's SiLU·mul wants."""

    def columns(self, part: Part) -> list[Weight]:
        """One weight, inputs cut (the layer's output is then a sum over the group)."""

    def table(self, part: Part) -> Weight:
        """One weight, whole on every rank."""

    def vector(self, name: str, size: int) -> Constant:
        """A one-dimensional tensor, whole, as float32."""

    def bias(self, parts: Sequence[Part], cut: bool = True) -> Constant:
        """The ".bias" tensors of parts, end to end, cut like `rows` or whole."""

    def constant(self, values: NDArray[np.float32]) -> Constant:
        """Numbers that are computed, not loaded."""

    def ignore_unused(self, prefix: str) -> None:
        """Names that begin so may stay in the checkpoint without being taken."""


class CheckpointWeights:
    """A `WeightSource` over a checkpoint, a backend and a parallel group."""

    def __init__(
        self, checkpoint: Checkpoint, backend: Backend, group: RankGroup | None = None
    ) -> None:
        self.group: RankGroup = group or SingleRank()
        self._checkpoint = checkpoint
        self._backend = backend
        self._left = set(checkpoint.names())
        self._names = frozenset(self._left)

    def rows(self, parts: Sequence[Part]) -> list[Weight]:
        shares = [self._share(part) for part in parts]
        runs = [list(run) for _, run in groupby(shares, key=lambda share: share.format)]
        return [self._backend.weight(concat_rows(run)) for run in runs]

    def gate_up(self, gate: Part, up: Part, bias: bool) -> GateUp:
        shares = [self._share(gate), self._share(up)]
        alike = shares[0].format == shares[1].format
        whole_runs = shares[0].shape[0] % GATE_UP_RUN == 0
        woven = self._backend.interleave_gate_up and alike and whole_runs
        if woven:
            weights = [interleave_rows(shares[0], shares[1], GATE_UP_RUN)]
        else:
            weights = [concat_rows(shares)] if alike else shares
        values = self._biases([gate, up], cut=True) if bias else None
        if values is not None and woven:
            values = [np.stack([b.reshape(-1, GATE_UP_RUN) for b in values], axis=1).ravel()]
        return GateUp(
            weights=[self._backend.weight(weight) for weight in weights],
            bias=None if values is None else self._backend.constant(np.concatenate(values)),
            interleaved=woven,
        )

    def columns(self, part: Part) -> list[Weight]:
        whole = self._weight(part)
        if self.group.size == 1:
            return [self._backend.weight(whole)]
        start, stop = self._range(part.name, part.shape[1])
        return [self._backend.weight(whole.columns(start, stop))]

    def table(self, part: Part) -> Weight:
        return self._backend.weight(self._weight(part))

    def vector(self, name: str, size: int) -> Constant:
        return self._backend.constant(to_float32(self._take(name, (size,))))

    def bias(self, parts: Sequence[Part], cut: bool = True) -> Constant:
        return self._backend.constant(np.concatenate(self._biases(parts, cut)))

    def constant(self, values: NDArray[np.float32]) -> Constant:
        return self._backend.constant(values)

    def ignore_unused(self, prefix: str) -> None:
        self._left = {name for name in self._left if not name.startswith(prefix)}

    def finish(self) -> None:
        """Say that the model is built. Raises ModelError if tensors are left over."""
        left = sorted(name for name in self._left if not NOT_WEIGHTS.search(name))
        if left:
            shown = ", ".join(left[:NAMES_SHOWN])
            more = f" and {len(left) - NAMES_SHOWN} more" if len(left) > NAMES_SHOWN else ""
            raise ModelError(f"the checkpoint has tensors that the model does not: {shown}{more}")

    def _biases(self, parts: Sequence[Part], cut: bool) -> list[NDArray[np.float32]]:
        values = []
        for part in parts:
            name, n = f"{part.name}.bias", part.shape[0]
            start, stop = self._range(name, n) if cut else (0, n)
            values.append(to_float32(self._take(name, (n,)))[start:stop])
        return values

    def _weight(self, part: Part) -> QuantizedWeight:
        raw = self._take(f"{part.name}.weight", part.shape)
        if raw.dtype != "int8":
            return read_weight(raw)
        return channel_int8(raw, self._take(f"{part.name}.weight_scale", (part.shape[0], 1)))

    def _take(self, name: str, shape: tuple[int, ...]) -> RawTensor:
        if name not in self._names:
            raise ModelError(f"the checkpoint has no tensor {name}, of shape {list(shape)}")
        raw = self._checkpoint.tensor(name)
        if tuple(raw.shape) != shape:
            raise ModelError(
                f"tensor {name} has shape {list(raw.shape)}; the config asks for {list(shape)}"
            )
        self._left.discard(name)
        return raw

    def _share(self, part: Part) -> QuantizedWeight:
        """This rank's outputs of a part."""
        whole = self._weight(part)
        if self.group.size == 1:
            return whole
        return whole.rows(*self._range(part.name, part.shape[0]))

    def _range(self, name: str, size: int) -> tuple[int, int]:
        """This rank's [start, stop) of `size` equal things."""
        each, rest = divmod(size, self.group.size)
        if rest:
            raise ModelError(f"{name}: {size} cannot be shared by {self.group.size} ranks")
        return self.group.rank * each, (self.group.rank + 1) * each
