"""The native CPU backend: a model recorded once, run as one native call per step.

    record ─▶ lower ─▶ fuse ─▶ plan the arena ─▶ (KV cache) ─▶ _native.Program

Section 0 of the program is the forward pass, section 1 the drawing. With `eager` nothing is fused
and every operation is a call of its own, in a section of its own: the same bits, one at a time.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from galley.batch import I32, RequestTable
from galley.config.engine import QuantizedActivations
from galley.kernels import _native
from galley.kernels.arena import ALIGNMENT, aligned_bytes, give_back, plan_arena
from galley.kernels.backend import Dense, MemoryAllocator, Model, StepInputs, StepLimits
from galley.kernels.native import int_arguments, pointer_arguments
from galley.kernels.ops import KVLayer
from galley.kernels.passes import FUSIONS, LOWERING, apply
from galley.kernels.program import Buffer, Kind, Rows, describe
from galley.kernels.quantized import QuantizedWeight
from galley.kernels.recorder import record
from galley.kernels.sampling import LogitMasks, Samples
from galley.kernels.weights import PackedWeight, pack

_KV_BYTES = {Kind.f32: 4, Kind.bf16: 2}


class CpuBackend:
    """Packed weights and the threads that compute with them (`backend.Backend`)."""

    name = "cpu"
    batch_invariant = True
    interleave_gate_up = True

    def __init__(
        self,
        dense: Dense = "bf16",
        threads: int = 0,
        eager: bool = False,
        quantized_activations: QuantizedActivations = "auto",
    ) -> None:
        self._dense = dense
        self.kv_itemsize = 4 if dense == "f32" else 2
        self._pool = _native.Pool(threads or len(os.sched_getaffinity(0)))
        self._eager = eager
        self._quantized = quantized_activations

    def weight(self, data: QuantizedWeight) -> PackedWeight:
        return pack(data, self._dense)

    def constant(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.ascontiguousarray(values, np.float32)

    def packed(self, weight: PackedWeight) -> PackedWeight:
        return weight

    def from_packed(self, packed: PackedWeight) -> PackedWeight:
        return packed

    def build(self, model: Model, limits: StepLimits) -> CpuExecutable:
        kv_kind = Kind.f32 if self._dense == "f32" else Kind.bf16
        return CpuExecutable(model, limits, self._pool, kv_kind, self._quantized, self._eager)


class KVMemory:
    """The cache's bytes: block after block, in a block layer after layer.

    block b:  [ layer 0: K and V of its pages | layer 1 | ... ]     `block_bytes` apart
    """

    def __init__(
        self,
        layers: list[KVLayer],
        num_blocks: int,
        block_size: int,
        kind: Kind,
        memory: MemoryAllocator | None = None,
    ) -> None:
        sizes = [layer_bytes(layer, block_size, kind) for layer in layers]
        self.offsets = np.cumsum([0, *sizes[:-1]]).tolist()
        self.block_bytes = sum(sizes)
        make = memory or (lambda size: aligned_bytes(size, zeros=True))
        whole = make(num_blocks * self.block_bytes)
        assert whole.ctypes.data % ALIGNMENT == 0 or whole.size == 0  # of no layers
        self.blocks = whole.reshape(num_blocks, self.block_bytes)

    def arguments(self, layer: KVLayer) -> tuple[int, int]:
        """The native `kv` and `kv_block_stride` of a layer."""
        return self.blocks.ctypes.data + self.offsets[layer.index], self.block_bytes


def layer_bytes(layer: KVLayer, block_size: int, kind: Kind) -> int:
    """K and V of one block of one layer; whole cache lines, as pages of 16 tokens always are."""
    size = 2 * block_size * layer.kv_heads * layer.head_dim * _KV_BYTES[kind]
    assert size % ALIGNMENT == 0
    return size


def _logit_rows(rows: int, vocab: int) -> NDArray[np.float32]:
    """[rows, vocab]; rows that would lie whole pages apart get a cache line between them: with the
    same place in each, all would share a few sets of the caches."""
    line, page = 16, 1024
    stride = vocab + line if vocab % page == 0 else vocab
    return np.empty((rows, stride), np.float32)[:, :vocab]


class CpuExecutable:
    """A recorded model (`backend.Executable`).

    Attributes:
        nodes: the operations of the forward pass, as they run.

    Raises ValueError where the model does something that no native operation does.
    """

    def __init__(
        self,
        model: Model,
        limits: StepLimits,
        pool: _native.Pool,
        kv_kind: Kind,
        quantized: QuantizedActivations,
        eager: bool,
    ) -> None:
        recorded, logits = record(model, kv_kind, quantized)
        self.nodes = apply(recorded, LOWERING if eager else (*LOWERING, *FUSIONS))
        self._ints = [int_arguments(node) for node in self.nodes]
        self._layers = list(model.kv_layers)
        self._kv_kind = kv_kind
        self._limits = limits
        self._pool = pool
        self._eager = eager
        self._output = logits.buffer
        # Logits outlive the forward pass, so they are no part of the arena.
        self._arena_plan = plan_arena(
            self.nodes, lambda b: 0 if b is self._output else self._buffer_bytes(b)
        )
        self._logits = _logit_rows(limits.logits, model.vocab_size)
        self._drawn = _SampleArrays(limits)
        self.activation_bytes = self._arena_plan.size + self._logits.strides[0] * limits.logits
        self._kv: KVMemory | None = None
        self._masks: LogitMasks | None = None
        self._program: _native.Program | None = None
        self._num_logits = 0
        self._kept: list[Any] = []  # what native code holds addresses of

    def kv_block_bytes(self, block_size: int) -> int:
        return sum(layer_bytes(layer, block_size, self._kv_kind) for layer in self._layers)

    def allocate_kv(
        self, num_blocks: int, block_size: int, memory: MemoryAllocator | None = None
    ) -> None:
        self._kv = KVMemory(self._layers, num_blocks, block_size, self._kv_kind, memory)

    def copy_blocks(self, src: I32, dst: I32) -> None:
        assert self._kv is not None
        for source, target in zip(src.tolist(), dst.tolist(), strict=True):
            self._kv.blocks[target] = self._kv.blocks[source]

    def release_blocks(self, blocks: list[int]) -> None:
        assert self._kv is not None
        ids = np.sort(np.array(blocks, np.int64))
        for run in np.split(ids, np.flatnonzero(np.diff(ids) != 1) + 1) if blocks else ():
            give_back(self._kv.blocks[run[0] : run[-1] + 1])

    def bind(self, table: RequestTable, sampling: Mapping[str, NDArray[Any]]) -> None:
        assert self._kv is not None, "bind before allocate_kv"
        program = self._make_program(self._kv)
        blocks = table.block_tables[0]
        columns = (table.token_ids, table.num_tokens, table.num_prompt, table.num_computed)
        history, num_tokens, num_prompt, num_computed = (c.ctypes.data for c in columns)
        program.bind(
            num_slots=table.num_slots,
            max_tokens=self._limits.tokens,
            max_rows=self._limits.rows,
            max_logits=self._limits.logits,
            history=history,
            history_stride=table.token_ids.shape[1],
            num_tokens=num_tokens,
            num_prompt=num_prompt,
            num_computed=num_computed,
            block_table=blocks.ctypes.data,
            table_stride=blocks.shape[1],
            block_size=table.groups[0].block_size,
            sampling={name: column.ctypes.data for name, column in sampling.items()},
        )
        self._kept += [table, dict(sampling)]
        self._program = program

    def set_masks(self, masks: LogitMasks | None) -> None:
        assert self._program is not None
        self._masks = masks  # keeps the arrays alive
        if masks is None:
            self._program.set_logit_masks()
            return
        arrays = (masks.addresses, masks.bias_indptr, masks.bias_ids, masks.bias_values)
        self._program.set_logit_masks(*(array.ctypes.data for array in arrays))

    def run(self, step: StepInputs, sample: bool) -> None:
        self._num_logits = int(step.num_logits.sum())
        if not self._eager:
            self._call(step, 0, 1 if sample else 0)
            return
        for section in range(len(self.nodes) + sample):
            self._call(step, section, section)

    def sample(self, step: StepInputs) -> None:
        self._call(step, self._sample_section, self._sample_section)

    def set_heartbeat(self, heartbeat: NDArray[np.int64]) -> None:
        assert self._program is not None
        self._kept.append(heartbeat)
        self._program.set_heartbeat(heartbeat.ctypes.data)

    def profile(self, on: bool) -> None:
        assert self._program is not None
        self._program.profile(on)

    def timings(self) -> list[tuple[str, int, int]]:
        assert self._program is not None
        return [(name, runs, ns) for name, _section, runs, ns in self._program.timings()]

    def describe(self) -> str:
        arena = f"arena {self._arena_plan.size / 2**20:.1f} MiB for {self._limits}"
        return f"{describe(self.nodes)}\n{arena}, KV cache {self._kv_kind.name}"

    @property
    def logits(self) -> NDArray[np.float32]:
        return self._logits[: self._num_logits]

    @property
    def samples(self) -> Samples:
        return self._drawn.view(self._num_logits)

    @property
    def _sample_section(self) -> int:
        return len(self.nodes) if self._eager else 1

    def _call(self, step: StepInputs, first: int, last: int) -> None:
        assert self._program is not None, "run before bind"
        columns = [
            np.ascontiguousarray(column, np.int32)
            for column in (step.slots, step.num_new, step.num_logits, step.num_sampled)
        ]
        slots, num_new, num_logits, num_sampled = (column.ctypes.data for column in columns)
        self._program.run(slots, num_new, num_logits, num_sampled, len(step.slots), first, last)

    def _make_program(self, kv: KVMemory) -> _native.Program:
        arena = aligned_bytes(self._arena_plan.size)
        self._kept.append(arena)

        def address_of(buffer: Buffer) -> int:
            if buffer is self._output:
                return int(self._logits.ctypes.data)
            return int(arena.ctypes.data) + self._arena_plan.spans[buffer].start

        logits_stride = self._logits.strides[0] // self._logits.itemsize
        program = _native.Program(self._pool)
        for i, node in enumerate(self.nodes):
            pointers, ints = pointer_arguments(node, address_of), dict(self._ints[i])
            results = (*node.writes.values(), *node.updates.values())
            if any(result.buffer is self._output for result in results):
                ints["out_stride"] = logits_stride
            if node.layer is not None:
                pointers["kv"], ints["kv_block_stride"] = kv.arguments(node.layer)
            program.add(node.op, pointers, ints, dict(node.floats), i if self._eager else 0)
        pointers = {"logits": self._logits.ctypes.data, **self._drawn.pointers()}
        ints = {
            "vocab": self._logits.shape[1],
            "logits_stride": logits_stride,
            "top_stride": self._limits.top_logprobs,
        }
        program.add("sample", pointers, ints, {}, self._sample_section)
        return program

    def _buffer_bytes(self, buffer: Buffer) -> int:
        rows = self._limits.tokens if buffer.rows == Rows.tokens else self._limits.logits
        return rows * _native.activation_bytes(int(buffer.kind), buffer.columns)


class _SampleArrays:
    """Where the drawing puts its results, for the most logit rows that a step may have."""

    def __init__(self, limits: StepLimits) -> None:
        rows, top = limits.logits, limits.top_logprobs
        self._token_ids = np.full(rows, -1, np.int32)
        self._logprobs = np.zeros(rows, np.float32)
        self._ranks = np.zeros(rows, np.int32)
        self._top_ids = np.zeros((rows, top), np.int32)
        self._top_logprobs = np.zeros((rows, top), np.float32)

    def pointers(self) -> dict[str, int]:
        arrays = {
            "token_ids": self._token_ids,
            "logprob": self._logprobs,
            "rank": self._ranks,
            "top_ids": self._top_ids,
            "top_logprobs": self._top_logprobs,
        }
        return {name: int(array.ctypes.data) for name, array in arrays.items()}

    def view(self, rows: int) -> Samples:
        return Samples(
            self._token_ids[:rows],
            self._logprobs[:rows],
            self._ranks[:rows],
            self._top_ids[:rows],
            self._top_logprobs[:rows],
        )
