"""The reference backend: runs a model by the ops' definitions in plain PyTorch (`ops/`).

It is what the kernels are tested against and what `--backend reference` serves with. It is clear
rather than fast, computes one row's attention after the other, and does not promise that a row's
bits are independent of its batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from galley.batch import I32, RequestTable
from galley.config.engine import QuantizedActivations
from galley.errors import ConfigError
from galley.kernels.adapters import AdapterTable
from galley.kernels.backend import (
    Dense,
    Executable,
    MemoryAllocator,
    Model,
    StepInputs,
    StepLimits,
    kv_layout,
)
from galley.kernels.ops import CacheLayer, LatentLayer, Op, Ops, StateLayer
from galley.kernels.quantized import QuantizedWeight
from galley.kernels.reference_sampler import ReferenceSampler
from galley.kernels.sampling import LogitMasks, Samples
from galley.kernels.weights import PackedWeight
from galley.kv.format import KVFormat
from galley.kv.layout import KVLayout


@dataclass
class KVCache:
    """K and V of all layers, each [layers][blocks, block_size, kv_heads, head_dim]; and states.

    Attributes:
        k, v: by layer; empty tensors for a layer with a state.
        states: by layer, float32 [blocks, units, unit_size], empty for one with keys and values.
            A state lies under the first of its blocks.
        groups: KV group of each layer, whose block table says where its tokens are.
        widths, intervals: of each layer's group, in the sense of `GroupSpec`.
        snapshots: by layer and number of a draft, the state before that draft of the last step.
        numbers: number format of K and V, which are rounded to it and held as `dtype`.
    """

    k: list[Tensor]
    v: list[Tensor]
    states: list[Tensor]
    block_size: int
    groups: list[int]
    widths: list[int]
    intervals: list[int]
    numbers: KVFormat
    snapshots: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    @staticmethod
    def zeros(
        layers: Sequence[CacheLayer],
        num_blocks: int,
        layout: KVLayout,
        dtype: torch.dtype,
        numbers: KVFormat,
    ) -> KVCache:
        def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
            # Not torch.zeros, which writes every page: numpy's zero pages take memory when written.
            raw = np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)
            return torch.from_numpy(raw).view(dtype).view(shape)

        def page(layer: CacheLayer) -> Tensor:
            if isinstance(layer, StateLayer):
                return torch.empty(num_blocks, 0)
            heads = 1 if isinstance(layer, LatentLayer) else layer.kv_heads
            shape = (num_blocks, layout.block_size, heads, layer.head_dim)
            return zeros(shape, dtype)

        def state(layer: CacheLayer) -> Tensor:
            if not isinstance(layer, StateLayer):
                return torch.empty(num_blocks, 0)
            return zeros((num_blocks, layer.units, layer.unit_size), torch.float32)

        k = [page(layer) for layer in layers]
        v = [
            torch.empty(num_blocks, 0) if isinstance(layer, LatentLayer) else page(layer)
            for layer in layers
        ]
        groups = [place.group for place in layout.places]
        return KVCache(
            k,
            v,
            [state(layer) for layer in layers],
            layout.block_size,
            groups,
            [layout.groups[g].width for g in groups],
            [layout.groups[g].interval for g in groups],
            numbers,
        )


@dataclass
class ReferenceContext:
    """A step as tensors (`ops.ForwardContext`).

    row r:  tokens query_start[r] .. query_start[r + 1], at positions computed[r] ...

    Attributes:
        token_ids: [T]; positions: [1, T]; logit_index: [L]; all int64.
        query_start: [S + 1]; computed: [S].
        first_draft: [S + 1] number of each row's first draft among those of the step.
        block_tables: [groups, S, blocks] ids of each row's blocks.
    """

    token_ids: Tensor
    positions: Tensor
    logit_index: Tensor
    query_start: list[int]
    computed: list[int]
    first_draft: list[int]
    block_tables: Tensor
    cache: KVCache

    def row_slots(self, layer: CacheLayer, row: int, length: int) -> Tensor:
        """[length] where the row's positions 0 .. length - 1 lie in the layer's flattened cache."""
        position = torch.arange(length)
        table = self.block_tables[self.cache.groups[layer.index]]
        block = table[row][position // self.cache.block_size]
        return block * self.cache.block_size + position % self.cache.block_size

    def states(self, layer: StateLayer) -> Iterator[tuple[slice, Tensor]]:
        """The step's tokens in order, row by row, in runs without a change of the state's blocks;
        with the state before the run, [units, unit_size], to be updated in place."""
        cache, i = self.cache, layer.index
        states, width = cache.states[i], cache.widths[i]
        for row, computed in enumerate(self.computed):
            table = self.block_tables[cache.groups[i], row]
            start, stop = self.query_start[row], self.query_start[row + 1]
            first, length = start - computed, computed + stop - start  # token = first + position
            interval = cache.intervals[i] or length
            draft = self.first_draft[row]
            known = length - (self.first_draft[row + 1] - draft)
            while computed < length:
                state = states[table[computed // interval * width]]
                if not computed:
                    state.zero_()
                elif computed % interval == 0:
                    state.copy_(states[table[(computed // interval - 1) * width]])
                end = min(known, (computed // interval + 1) * interval)
                if computed >= known:
                    cache.snapshots[i, draft + computed - known] = state.clone()
                    end = computed + 1
                yield slice(first + computed, first + end), state
                computed = end

    def rewind(self, layer: StateLayer, row: int, num_kept: int) -> None:
        """The row's state becomes that before the draft number `num_kept` of the row."""
        cache, i, draft = self.cache, layer.index, self.first_draft[row] + num_kept
        if draft >= self.first_draft[row + 1]:
            return
        last = self.computed[row] + self.query_start[row + 1] - self.query_start[row]
        last += draft - self.first_draft[row + 1] - 1
        index = last // cache.intervals[i] * cache.widths[i] if cache.intervals[i] else 0
        block = self.block_tables[cache.groups[i], row, index]
        cache.states[i][block] = cache.snapshots[i, draft]


class ReferenceOps:
    """Runs the ops' definitions. Values are tensors of `dtype`, weights tensors [N, K].

    Attributes:
        adapters: that rows may have.
        token_places, logit_places: [T], [L] each row's adapter, -1 = none.
    """

    def __init__(
        self, dtype: torch.dtype = torch.float32, adapters: AdapterTable | None = None
    ) -> None:
        self.dtype = dtype
        self._adapters = adapters
        self.token_places = self.logit_places = np.empty(0, np.int32)

    @property
    def adapters(self) -> AdapterTable:
        assert self._adapters is not None
        return self._adapters

    def adapter_places(self, logits: bool) -> NDArray[np.int32]:
        """Places of the adapters of logit rows, or of tokens."""
        return self.logit_places if logits else self.token_places

    def run(self, op: Op, *args: Any) -> Any:
        return op.reference(self, *args)


class ReferenceBackend:
    """Weights as dequantised tensors; see `backend.Backend`.

    Args:
        dense: precision that weights which are not quantised are rounded to.
        compute: number format of values and of the KV cache.
    """

    name = "reference"
    batch_invariant = False
    interleave_gate_up = False

    def __init__(
        self,
        dense: Dense = "f32",
        threads: int = 0,
        eager: bool = False,
        quantized_activations: QuantizedActivations = "auto",
        compute: torch.dtype = torch.float32,
        kv: KVFormat | None = None,
    ) -> None:
        if threads:
            torch.set_num_threads(threads)
        self.dense = dense
        self._compute = compute
        self.kv = kv or KVFormat(str(compute).removeprefix("torch."))

    def weight(self, data: QuantizedWeight, float32: bool = False) -> Tensor:
        values = torch.from_numpy(data.to_float32())
        if data.dense is not None and self.dense == "bf16" and not float32:
            values = values.to(torch.bfloat16)
        return values.to(self._compute)

    def constant(self, values: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, np.float32))

    def packed(self, weight: Tensor) -> None:
        """This backend caches no weights."""

    def from_packed(self, packed: PackedWeight) -> Tensor:
        return torch.from_numpy(packed.unpack()).to(self._compute)

    def build(
        self,
        model: Model,
        limits: StepLimits,
        outputs: Sequence[str] = (),
        adapters: AdapterTable | None = None,
        prompt_rows: bool = False,
    ) -> ReferenceExecutable:
        if prompt_rows:
            raise ConfigError(
                "--enable-prompt-embeds is not supported with --backend reference.",
                field="enable_prompt_embeds",
            )
        return ReferenceExecutable(model, limits, self._compute, self.kv, outputs, adapters)


class ReferenceExecutable:
    """Runs the model's forward pass eagerly at each step (`backend.Executable`)."""

    def __init__(
        self,
        model: Model,
        limits: StepLimits,
        dtype: torch.dtype,
        kv: KVFormat,
        outputs: Sequence[str] = (),
        adapters: AdapterTable | None = None,
    ) -> None:
        self._model = model
        self._dtype, self._numbers = dtype, kv
        self._limits = limits
        self._reference = ReferenceOps(dtype, adapters)
        self._adapter: NDArray[np.int32] | None = None
        self.activation_bytes = limits.logits * model.vocab_size * 4
        self._cache: KVCache | None = None
        self._table: RequestTable | None = None
        self._sampler: ReferenceSampler | None = None
        self._samples: Samples | None = None
        self._logits = np.empty((0, model.vocab_size), np.float32)
        self._hidden = np.empty((0, 0), np.float32)
        self._normed = np.empty((0, 0), np.float32) if "normed" in outputs else None
        self._heartbeat = np.zeros(1, np.int64)

    def kv_layout(self, block_size: int, state_interval: int = 0) -> KVLayout:
        return kv_layout(self._model.kv_layers, self._numbers, block_size, state_interval)

    def allocate_kv(
        self, num_blocks: int, layout: KVLayout, memory: MemoryAllocator | None = None
    ) -> None:
        # Each layer has its own memory, which grows as blocks of its group are written.
        layers = self._model.kv_layers
        self._cache = KVCache.zeros(layers, num_blocks, layout, self._dtype, self._numbers)

    def share_kv(self, other: Executable) -> None:
        assert isinstance(other, ReferenceExecutable)
        self._cache = other._cache

    def copy_blocks(self, src: I32, dst: I32) -> None:
        assert self._cache is not None
        for source, target in zip(src.tolist(), dst.tolist(), strict=True):
            for cache in (*self._cache.k, *self._cache.v, *self._cache.states):
                cache[target] = cache[source]

    def release_blocks(self, blocks: list[int]) -> None:
        """Does nothing: blocks keep their memory."""

    def bind(self, table: RequestTable, columns: Mapping[str, NDArray[Any]]) -> None:
        self._table = table
        self._adapter = columns.get("adapter")
        self._sampler = ReferenceSampler(table, columns, self._limits)

    def set_masks(self, masks: LogitMasks | None) -> None:
        assert self._sampler is not None
        self._sampler.masks = masks

    def run(
        self, step: StepInputs, sample: bool, adapted: bool = False, greedy: bool = False
    ) -> None:
        assert self._cache is not None, "run before allocate_kv"
        assert self._table is not None, "run before bind"
        ops = Ops(self._reference, adapted=adapted)
        if adapted:
            assert self._adapter is not None
            places = self._adapter[step.slots]
            self._reference.token_places = np.repeat(places, step.num_new)
            self._reference.logit_places = np.repeat(places, step.num_logits)
        ctx = step_context(step, self._table, self._cache)
        with torch.inference_mode():
            hidden: Any = self._model.embed(ops, ctx)
            hidden = self._model.forward(ops, hidden, ctx)
            logits: Any = self._model.logits(ops, hidden, ctx)
            if self._normed is not None:
                normed: Any = self._model.final_norm(ops, hidden)
                self._normed = normed.float().numpy()
        self._logits = logits.float().numpy()
        self._hidden = hidden.float().numpy()
        self._heartbeat[0] += 1
        if sample:
            self.sample(step)

    def sample(self, step: StepInputs) -> None:
        assert self._sampler is not None, "sample before bind"
        self._samples = self._sampler.sample(step, self._logits)

    def rewind(self, step: StepInputs, num_kept: I32) -> None:
        assert self._cache is not None
        assert self._table is not None
        ctx = step_context(step, self._table, self._cache)
        for layer in self._model.kv_layers:
            if isinstance(layer, StateLayer):
                for row, kept in enumerate(num_kept.tolist()):
                    ctx.rewind(layer, row, kept)

    def set_heartbeat(self, heartbeat: NDArray[np.int64]) -> None:
        self._heartbeat = heartbeat

    def profile(self, on: bool) -> None:
        """Does nothing; torch has its own profiler."""

    def timings(self) -> list[tuple[str, int, int]]:
        return []

    def describe(self) -> str:
        return f"{type(self._model).__name__} run eagerly at each step, in {self._dtype}"

    @property
    def outputs(self) -> dict[str, NDArray[np.float32]]:
        outputs = {"logits": self._logits, "hidden": self._hidden}
        if self._normed is not None:
            outputs["normed"] = self._normed
        return outputs

    @property
    def logits(self) -> NDArray[np.float32]:
        return self._logits

    @property
    def samples(self) -> Samples:
        assert self._samples is not None, "nothing was sampled"
        return self._samples


def step_context(step: StepInputs, table: RequestTable, cache: KVCache) -> ReferenceContext:
    """The tensors of a step, from the plan's columns and the table."""
    slots, num_new = step.slots, step.num_new
    computed = table.num_computed[slots]
    query_start = np.concatenate([[0], np.cumsum(num_new)])
    row = np.repeat(np.arange(len(slots)), num_new)
    positions = np.arange(query_start[-1]) - query_start[row] + computed[row]
    # A row's logits are of its last num_logits tokens.
    logit_index = [
        np.arange(stop - count, stop)
        for stop, count in zip(query_start[1:], step.num_logits, strict=True)
    ]

    def tensor(array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array.astype(np.int64))

    return ReferenceContext(
        token_ids=tensor(table.token_ids[slots[row], positions]),
        positions=tensor(positions)[None],
        logit_index=tensor(np.concatenate([*logit_index, np.empty(0)])),
        query_start=query_start.tolist(),
        computed=computed.tolist(),
        first_draft=[0, *np.cumsum(np.maximum(step.num_sampled.astype(int) - 1, 0)).tolist()],
        block_tables=tensor(table.block_tables[:, slots]),
        cache=cache,
    )
