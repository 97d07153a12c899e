"""The native CPU backend: a model recorded once, run as one native call per step.

    record ─▶ fuse ─▶ plan the arena ─▶ (KV cache) ─▶ _native.Program

The program holds the nodes of the forward pass, in order, then the sampler; behind all others an op
that takes the largest logit of each row in place of the last node and the sampler. Any range of ops
can be run by itself. With `eager` nothing is fused and each op is a native call of its own, with
the same results.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from galley.batch import I32, RequestTable
from galley.config.engine import QuantizedActivations
from galley.errors import ConfigError
from galley.kernels import _native
from galley.kernels.adapters import AdapterTable
from galley.kernels.arena import ALIGNMENT, aligned_bytes, plan_arena, release_pages
from galley.kernels.backend import (
    Dense,
    Executable,
    MemoryAllocator,
    Model,
    StepInputs,
    StepLimits,
    dense_kv,
    kv_layout,
)
from galley.kernels.native import Argument, arguments, pointer_arguments
from galley.kernels.ops import CacheLayer, StateLayer
from galley.kernels.ops.sample import MASK_COLUMNS
from galley.kernels.ops.state_rewind import NUM_KEPT
from galley.kernels.passes import FUSIONS, Pass, apply
from galley.kernels.program import OUTPUT, Buffer, Kind, Node, Symbol, describe
from galley.kernels.quantized import QuantizedWeight
from galley.kernels.recorder import record
from galley.kernels.sampling import LogitMasks, Samples
from galley.kernels.weights import PackedWeight, WeightMemory, pack
from galley.kv.format import KVFormat
from galley.kv.layout import KVLayout


class CpuBackend:
    """Packed weights and the threads that compute with them (`backend.Backend`).

    Args:
        eager: run op by op, without fusions.
        passes: rewrites of the recorded program; None = all fusions. They change no bit.

    Raises ConfigError for activations of bf16 without AMX.
    """

    name = "cpu"
    batch_invariant = True
    interleave_gate_up = True

    def __init__(
        self,
        dense: Dense = "bf16",
        threads: int = 0,
        eager: bool = False,
        quantized_activations: QuantizedActivations = "auto",
        passes: Sequence[Pass] | None = None,
        kv: KVFormat | None = None,
    ) -> None:
        if quantized_activations == "bf16" and _native.isa() != "amx":
            raise ConfigError(
                f"--quantized-activations bf16 needs AMX; the kernels use {_native.isa()}",
                field="quantized_activations",
            )
        self.dense: Dense = dense
        self._memory = WeightMemory()
        self.kv = kv or dense_kv(dense)
        self._pool = _native.Pool(threads or len(os.sched_getaffinity(0)))
        self._eager = eager
        self._passes = () if eager else FUSIONS if passes is None else tuple(passes)
        self._quantized = quantized_activations

    def weight(self, data: QuantizedWeight, float32: bool = False) -> PackedWeight:
        return pack(data, "f32" if float32 else self.dense, self._memory)

    def constant(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.ascontiguousarray(values, np.float32)

    def packed(self, weight: PackedWeight) -> PackedWeight:
        return weight

    def from_packed(self, packed: PackedWeight) -> PackedWeight:
        return packed

    def build(
        self,
        model: Model,
        limits: StepLimits,
        outputs: Sequence[str] = (),
        adapters: AdapterTable | None = None,
        prompt_rows: bool = False,
    ) -> CpuExecutable:
        passes = [self._forward(model, outputs, None, prompt_rows)]
        if adapters is not None:
            passes.append(self._forward(model, outputs, adapters, prompt_rows))
        return CpuExecutable(model, passes, limits, self._pool, self.kv, self._eager)

    def _forward(
        self,
        model: Model,
        outputs: Sequence[str],
        adapters: AdapterTable | None,
        prompt_rows: bool,
    ) -> ForwardPass:
        nodes, symbols = record(
            model, self.kv, self._quantized, outputs, adapters, prompt_rows, self.dense
        )
        for name in outputs:
            if name not in symbols:
                known = ", ".join(symbols)
                raise ValueError(f"the model has no output {name}; it has {known}")
        kept = {name: symbols[name] for name in dict.fromkeys(("logits", *outputs))}
        nodes = [*nodes, Node(OUTPUT, reads=kept)]  # no pass may fuse away what is read later
        nodes = apply(nodes, self._passes)
        return ForwardPass([node for node in nodes if node.op != OUTPUT], kept)


class ForwardPass(msgspec.Struct, frozen=True, eq=False):
    """A recorded forward pass.

    Attributes:
        outputs: symbols whose values outlive the run, "logits" among them.
    """

    nodes: list[Node]
    outputs: Mapping[str, Symbol]


class KVMemory:
    """The cache's bytes: block after block, laid out by `kv.layout`.

    block b of a group:  [ a layer of the group: K and V of its pages | next layer | ... ]
    of a state:          [ units | units of the next layer | ... ]
    """

    def __init__(
        self, layout: KVLayout, num_blocks: int, memory: MemoryAllocator | None = None
    ) -> None:
        self._layout = layout
        make = memory or (lambda size: aligned_bytes(size, zeros=True))
        whole = make(num_blocks * layout.block_bytes)
        assert whole.ctypes.data % ALIGNMENT == 0 or whole.size == 0  # a model without layers
        self.blocks = whole.reshape(num_blocks, layout.block_bytes)

    def address(self, layer: CacheLayer) -> int:
        """The native argument `kv` (of a state: `state`) of a layer."""
        return int(self.blocks.ctypes.data) + self._layout.places[layer.index].offset

    def arguments(self, layer: CacheLayer) -> dict[str, Argument]:
        """The other arguments of an op that reads or writes the layer's cache."""
        if isinstance(layer, StateLayer):
            place = self._layout.places[layer.index]
            group = self._layout.groups[place.group]
            return {
                "state_block_stride": self._layout.block_bytes,
                "state_first": place.first,
                "state_per_block": place.per_block,
                "state_width": group.width,
                "state_interval": group.interval,
                "block_table": block_table(place.group),
            }
        return {
            "kv_block_stride": self._layout.block_bytes,
            "block_size": self._layout.block_size,
            "block_table": block_table(self._layout.places[layer.index].group),
        }


def logit_stride(vocab: int) -> int:
    """Numbers from one row of logits to the next. Rows that would be whole pages apart get a cache
    line between them: otherwise the same column of all rows would map to a few sets of the caches.
    """
    line, page = 16, 1024
    return vocab + line if vocab % page == 0 else vocab


def _logit_rows(rows: int, vocab: int) -> NDArray[np.float32]:
    """[rows, vocab]"""
    return np.empty((rows, logit_stride(vocab)), np.float32)[:, :vocab]


def block_table(group: int) -> str:
    """Name of the column that holds the block table of a KV group."""
    return f"block_table.{group}"


def table_columns(table: RequestTable) -> dict[str, NDArray[Any]]:
    """The columns of a table, by slot, under the names by which native ops read them."""
    return {
        "history": table.token_ids,
        "num_tokens": table.num_tokens,
        "num_prompt": table.num_prompt,
        "num_computed": table.num_computed,
        **{block_table(group): ids for group, ids in enumerate(table.block_tables)},
    }


def bind_column(program: _native.Program, name: str, array: NDArray[Any]) -> None:
    """Bind a column with one row a slot, token or logit row."""
    if array.size and array.strides[-1] != array.itemsize:
        raise ValueError(f"column {name} is not contiguous")
    stride = array.strides[0] // array.itemsize if array.ndim > 1 else 1
    program.bind(name, array.dtype.str[1:], array.ctypes.data, stride)


class CpuExecutable:
    """A recorded model, ready to run (`backend.Executable`).

    Args:
        passes: the forward pass; and that of steps in which rows have adapters, if there are any.

    Attributes:
        nodes: of the first pass: ops 0 .. len(nodes) - 1 of the program. The sampler follows, then
            the second pass and its sampler, then the ops that take drafts back from states.

    Raises ValueError where the model does something that no native op does.
    """

    def __init__(
        self,
        model: Model,
        passes: Sequence[ForwardPass],
        limits: StepLimits,
        pool: _native.Pool,
        kv: KVFormat,
        eager: bool,
    ) -> None:
        self._passes = list(passes)
        self.nodes = passes[0].nodes
        self._arguments = [[arguments(node) for node in p.nodes] for p in passes]
        self._layers = list(model.kv_layers)
        self._numbers = kv
        self._limits = limits
        self._sizes = {"tokens": limits.tokens, "sequences": limits.rows, "logits": limits.logits}
        self._pool = pool
        self._eager = eager
        self._outputs = dict(passes[0].outputs)
        kept = {name: self._pin(name, symbol) for name, symbol in self._outputs.items()}
        self._pinned = {s.buffer: kept[name] for p in passes for name, s in p.outputs.items()}
        # Outputs outlive the forward pass, so they have no place in the arena.
        self._arena_plans = [
            plan_arena(p.nodes, lambda b: 0 if b in self._pinned else self._buffer_bytes(b))
            for p in passes
        ]
        self._arena_bytes = max(plan.size for plan in self._arena_plans)  # one runs at a time
        self._logits = kept["logits"]
        self._samples = _SampleArrays(limits)
        pinned_bytes = sum(len(rows) * rows.strides[0] for rows in kept.values())
        states = [layer for layer in self._layers if isinstance(layer, StateLayer)]
        self._snapshots = {
            layer.index: np.empty((limits.drafts, layer.units * layer.unit_size), np.float32)
            for layer in (states if limits.drafts else ())
        }
        self._num_kept: I32 = np.zeros(limits.rows, np.int32)
        self.activation_bytes = self._arena_bytes + pinned_bytes
        self.activation_bytes += sum(array.nbytes for array in self._snapshots.values())
        self._kv: KVMemory | None = None
        self._masks: LogitMasks | None = None
        self._program: _native.Program | None = None
        self._step_sizes = dict.fromkeys(self._sizes, 0)  # of the last run
        #: the op that takes the largest logit of each row, if the head is nothing but a product
        self._argmax: int | None = None
        self._profiled = False
        self._keepalive: list[Any] = []  # arrays whose addresses native code holds

    def kv_layout(self, block_size: int, state_interval: int = 0) -> KVLayout:
        return kv_layout(self._layers, self._numbers, block_size, state_interval)

    def allocate_kv(
        self, num_blocks: int, layout: KVLayout, memory: MemoryAllocator | None = None
    ) -> None:
        self._kv = KVMemory(layout, num_blocks, memory)

    def share_kv(self, other: Executable) -> None:
        assert isinstance(other, CpuExecutable)
        self._kv = other._kv

    def copy_blocks(self, src: I32, dst: I32) -> None:
        assert self._kv is not None
        for source, target in zip(src.tolist(), dst.tolist(), strict=True):
            self._kv.blocks[target] = self._kv.blocks[source]

    def release_blocks(self, blocks: list[int]) -> None:
        assert self._kv is not None
        ids = np.sort(np.array(blocks, np.int64))
        for run in np.split(ids, np.flatnonzero(np.diff(ids) != 1) + 1) if blocks else ():
            release_pages(self._kv.blocks[run[0] : run[-1] + 1])

    def bind(self, table: RequestTable, columns: Mapping[str, NDArray[Any]]) -> None:
        assert self._kv is not None, "bind before allocate_kv"
        program = _native.Program(self._pool, table.num_slots, self._sizes)
        for name, array in (table_columns(table) | dict(columns)).items():
            bind_column(program, name, array)
        self._add_ops(program, self._kv)
        is_read = program.columns()
        unread = [name for name in columns if not is_read[name]]
        if unread:
            raise ValueError(f"no op reads the column {unread[0]}")
        self._keepalive += [table, dict(columns)]
        self._program = program

    def set_masks(self, masks: LogitMasks | None) -> None:
        assert self._program is not None
        self._masks = masks  # keeps the arrays alive
        if masks is None:
            for name in MASK_COLUMNS:
                self._program.unbind(name)
            return
        arrays: list[NDArray[Any]] = [masks.addresses, masks.bias_indptr]
        arrays += [masks.bias_ids, masks.bias_values]
        for name, array in zip(MASK_COLUMNS, arrays, strict=True):
            bind_column(self._program, name, array)

    def run(
        self, step: StepInputs, sample: bool, adapted: bool = False, greedy: bool = False
    ) -> None:
        first = len(self.nodes) + 1 if adapted else 0
        last = first + len(self._passes[adapted].nodes) + sample
        alone = not (adapted or self._eager or self._profiled)
        if greedy and sample and alone and self._argmax is not None:
            self.run_ops(step, first, last - 2, self._argmax)
            return
        if not self._eager:
            self.run_ops(step, first, last)
            return
        for op in range(first, last):
            self.run_ops(step, op, op + 1)

    def sample(self, step: StepInputs) -> None:
        self.run_ops(step, len(self.nodes), len(self.nodes) + 1)

    def rewind(self, step: StepInputs, num_kept: I32) -> None:
        first = sum(len(forward.nodes) + 1 for forward in self._passes)
        self._num_kept[: len(num_kept)] = num_kept
        self.run_ops(step, first, first + len(self._snapshots))

    def run_ops(self, step: StepInputs, first: int, last: int, then: int = -1) -> None:
        """Run ops first .. last - 1 of a step, and op `then` if it is not -1. A later call for the
        same step may go on with the next ones: values between them stay where they are.
        """
        assert self._program is not None, "run before bind"
        columns = [
            np.ascontiguousarray(column, np.int32)
            for column in (step.slots, step.num_new, step.num_logits, step.num_sampled)
        ]
        slots, num_new, num_logits, num_sampled = (column.ctypes.data for column in columns)
        n = len(step.slots)
        self._program.run(slots, num_new, num_logits, num_sampled, n, first, last, then)
        self._step_sizes = self._program.sizes()

    def set_heartbeat(self, heartbeat: NDArray[np.int64]) -> None:
        assert self._program is not None
        self._keepalive.append(heartbeat)
        self._program.set_heartbeat(heartbeat.ctypes.data)

    def profile(self, on: bool) -> None:
        assert self._program is not None
        self._profiled = on
        self._program.profile(on)

    def timings(self) -> list[tuple[str, int, int]]:
        assert self._program is not None
        return self._program.timings()[: self._argmax]

    def describe(self) -> str:
        arena = f"arena {self._arena_bytes / 2**20:.1f} MiB for {self._limits}"
        return f"{describe(self.nodes)}\n{arena}, KV cache {self._numbers}"

    @property
    def outputs(self) -> dict[str, NDArray[np.float32]]:
        return {
            name: self._pinned[s.buffer][: self._rows(s, self._step_sizes)]
            for name, s in self._outputs.items()
        }

    @property
    def logits(self) -> NDArray[np.float32]:
        return self._logits[: self._step_sizes["logits"]]

    @property
    def samples(self) -> Samples:
        return self._samples.view(self._step_sizes["logits"])

    def _add_ops(self, program: _native.Program, kv: KVMemory) -> None:
        arena = aligned_bytes(self._arena_bytes)
        self._keepalive.append(arena)
        for number in range(len(self._passes)):
            self._add_pass(program, kv, number, int(arena.ctypes.data))
        if self._snapshots:
            bind_column(program, NUM_KEPT, self._num_kept)
        for layer in self._layers:
            if isinstance(layer, StateLayer) and self._snapshots:
                pointers, values = self._cache_arguments(kv, layer)
                values |= {"units": layer.units, "unit_size": layer.unit_size}
                program.add("state_rewind", pointers, values)
        head = self.nodes[-1]
        if head.op == "linear" and not head.updates and head.writes["out"].is_whole:
            address = self._addresses(0, int(arena.ctypes.data))
            pointers, values = pointer_arguments(head, address), dict(self._arguments[0][-1])
            del pointers["out"]
            pointers["token_ids"] = self._samples.pointers()["token_ids"]
            self._argmax = program.add("linear_argmax", pointers, values)

    def _addresses(self, number: int, arena: int) -> Callable[[Buffer], int]:
        """Where the buffers of a forward pass are; `arena` is the address of their memory."""
        spans = self._arena_plans[number].spans

        def address_of(buffer: Buffer) -> int:
            if buffer in self._pinned:
                return int(self._pinned[buffer].ctypes.data)
            return arena + spans[buffer].start

        return address_of

    def _cache_arguments(
        self, kv: KVMemory, layer: CacheLayer
    ) -> tuple[dict[str, int], dict[str, Argument]]:
        """Pointers and other arguments of an op that reads or writes the layer's cache."""
        if not isinstance(layer, StateLayer):
            return {"kv": kv.address(layer)}, kv.arguments(layer)
        pointers, values = {"state": kv.address(layer)}, kv.arguments(layer)
        if self._snapshots:
            pointers["snapshots"] = int(self._snapshots[layer.index].ctypes.data)
            values["most_drafts"] = self._limits.drafts
        return pointers, values

    def _add_pass(self, program: _native.Program, kv: KVMemory, number: int, arena: int) -> None:
        """Add a forward pass and a sampler; `arena` is the address of its buffers."""
        forward, address_of = self._passes[number], self._addresses(number, arena)
        logits_stride = self._logits.strides[0] // self._logits.itemsize
        for node, values in zip(forward.nodes, self._arguments[number], strict=True):
            pointers, values = pointer_arguments(node, address_of), dict(values)
            results = (*node.writes.values(), *node.updates.values())
            if any(result.buffer is forward.outputs["logits"].buffer for result in results):
                values["out_stride"] = logits_stride
            if node.layer is not None:
                of_cache = self._cache_arguments(kv, node.layer)
                pointers |= of_cache[0]
                values |= of_cache[1]
            program.add(node.op, pointers, values)
        pointers = {"logits": self._logits.ctypes.data, **self._samples.pointers()}
        top = self._limits.top_logprobs
        vocab = self._logits.shape[1]
        program.add(
            "sample", pointers, {"vocab": vocab, "logits_stride": logits_stride, "top_stride": top}
        )

    def _pin(self, name: str, symbol: Symbol) -> NDArray[np.float32]:
        """Memory of an output, for the most rows that a step may have."""
        if symbol.kind != Kind.f32 or not symbol.is_whole:
            raise ValueError(f"output {name} is not whole rows of float32")
        rows = self._rows(symbol, self._sizes)
        if name == "logits":
            return _logit_rows(rows, symbol.columns)
        return np.empty((rows, symbol.columns), np.float32)

    def _rows(self, symbol: Symbol, sizes: Mapping[str, int]) -> int:
        dim = symbol.buffer.rows
        return sizes[dim.base] * dim.times

    def _buffer_bytes(self, buffer: Buffer) -> int:
        rows = self._sizes[buffer.rows.base] * buffer.rows.times
        return rows * _native.activation_bytes(int(buffer.kind), buffer.columns)


class _SampleArrays:
    """Results of the sampler, for the most logit rows that a step may have."""

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
