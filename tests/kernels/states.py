"""A cache of one recurrent state, and the ops over it: native code and definition, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from galley.batch import NewRow, RequestTable, StepPlan
from galley.kernels.backend import kv_layout
from galley.kernels.native import arguments
from galley.kernels.ops import Ops, StateLayer, Value
from galley.kernels.program import TOKENS, Symbol
from galley.kernels.recorder import Recorder
from galley.kernels.reference import KVCache, ReferenceOps, step_context
from galley.kv.format import KVFormat
from galley.request import SamplingParams
from tests.kernels.native_harness import Native, aligned, use_isa

SLOTS, MAX_LEN = 3, 96
#: Calls the op to test with `ops`, the values [T, columns] and the constants by name, the state and
#: the context of the step.
Call = Callable[[Ops, dict[str, Any], dict[str, Any], StateLayer, Any], Value]
F32 = NDArray[np.float32]


def definition(
    call: Call, constants: dict[str, F32], layer: StateLayer, rows: Sequence[dict[str, F32]]
) -> list[F32]:
    """The op's definition, each sequence in one step by itself."""
    results = []
    for values in rows:
        n = len(next(iter(values.values())))
        layout = kv_layout([layer], KVFormat("float32"), 16)
        table = RequestTable(1, MAX_LEN, layout.groups)
        table.block_tables[:] = 1
        table.set_row(NewRow(0, 0, np.zeros(n, np.int32), n, 0, SamplingParams(), []))
        count = np.array([n], np.int32)
        plan = StepPlan(1, np.zeros(1, np.int32), count, count, np.zeros(1, np.uint8))
        cache = KVCache.zeros([layer], 2, layout, torch.float32, KVFormat("float32"))
        tensors = {name: torch.from_numpy(v) for name, v in values.items()}
        fixed = {name: torch.from_numpy(c) for name, c in constants.items()}
        context = step_context(plan, table, cache)
        results.append(call(Ops(ReferenceOps()), tensors, fixed, layer, context).numpy())
    return results


def native(
    call: Call,
    constants: dict[str, F32],
    layer: StateLayer,
    rows: Sequence[dict[str, F32]],
    chunks: Sequence[Sequence[int]],
    isa: str,
    interval: int = 0,
    threads: int = 1,
) -> list[F32]:
    """The native op; step i computes chunks[i][r] tokens of sequence r (0 = it has no row).

    Values are columns of one wider buffer; a state lies in two blocks, at random ids.
    """
    widths = {name: v.shape[1] for name, v in rows[0].items()}
    total = sum(widths.values()) + 8
    buffer = Symbol.new(TOKENS, total).buffer
    starts = dict(zip(widths, np.cumsum([8, *widths.values()]), strict=False))
    symbols = {name: Symbol(buffer, n, int(starts[name])) for name, n in widths.items()}
    recorder = Recorder(KVFormat("float32"))
    out: Any = call(Ops(recorder), symbols, constants, layer, None)
    [node] = recorder.nodes
    per_block = -(-(layer.units + 1) // 2)
    stride = per_block * layer.unit_size * 4 + 64
    tokens = SLOTS * MAX_LEN
    states = MAX_LEN // interval if interval else 1
    x, y = aligned((tokens, total), np.float32), aligned((tokens, out.columns), np.float32)
    memory = aligned((1 + SLOTS * states * 2, stride), np.uint8)
    memory[:] = 0x7F  # not a number that a result could hide
    rng = np.random.default_rng(0)
    table = rng.permutation(np.arange(1, len(memory), dtype=np.int32)).reshape(SLOTS, -1)
    with use_isa(isa):
        program = Native(slots=SLOTS, max_len=MAX_LEN, threads=threads)
        program.bind(block_table=np.ascontiguousarray(table))
        program.keep += [node, x, y, memory]
        pointers = {n: int(c.ctypes.data) for n, c in node.constants.items()}
        pointers |= {n: x.ctypes.data + 4 * s.start for n, s in node.reads.items()}
        pointers |= {"out": y.ctypes.data, "state": memory.ctypes.data}
        placed = {
            "state_block_stride": stride,
            "state_first": 1,
            "state_per_block": per_block,
            "state_width": 2,
            "state_interval": interval,
        }
        program.program.add(node.op, pointers, {**arguments(node), **placed})
    results: list[list[F32]] = [[] for _ in rows]
    for step in chunks:
        present = [r for r, n in enumerate(step) if n]
        start = 0
        for r in present:
            done = int(program.num_computed[r])
            for name, v in rows[r].items():
                first = int(starts[name])
                x[start : start + step[r], first : first + widths[name]] = v[done : done + step[r]]
            start += step[r]
        program.run([step[r] for r in present], slots=present)
        start = 0
        for r in present:
            results[r].append(y[start : start + step[r]].copy())
            program.num_computed[r] += step[r]
            start += step[r]
    return [np.concatenate(parts) for parts in results]
