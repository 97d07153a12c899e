"""The experts of a layer, with what the adapters of the step's rows add to each of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from galley.kernels.adapters import AdapterSite, PackedAdapter
from galley.kernels.ops.adapt import LOW, TABLE_INTS, parts_of, site_table
from galley.kernels.ops.definition import NativeOp, Op, output, whole
from galley.kernels.ops.experts import Activation, ExpertNodes, ExpertWeights
from galley.kernels.program import TOKENS, Dim, Node, SiteTable, Symbol
from galley.kernels.values import Value

if TYPE_CHECKING:
    from torch import Tensor

    from galley.kernels.recorder import Recorder
    from galley.kernels.reference import ReferenceOps

_SHARED = {
    **TABLE_INTS,
    "experts": "",
    "top_k": "",
    "first_input": "the first expert's first matrix A",
    "inputs": "matrices A of an expert",
    "max_rank": "",
}
#: Activations that also exist as an op of their own.
_ACTIVATIONS = {Activation.silu: "silu_and_mul", Activation.gelu: "gelu_and_mul"}


def _shared(node: Node) -> tuple[SiteTable, dict[str, int | Dim]]:
    table, arguments = site_table(node)
    own = {
        "experts": table.site.experts,
        "top_k": node.reads["chosen"].columns // 2,
        "first_input": table.site.first_input,
        "inputs": table.site.inputs,
        "max_rank": table.adapters.max_rank,
    }
    return table, {**arguments, **own}


def _shrink_arguments(node: Node) -> dict[str, int | Dim]:
    table, shared = _shared(node)
    x = whole(node.reads["x"])
    return {
        **shared,
        "k": table.site.k,
        "x_kind": int(x.kind),
        "by_token": int(x.buffer.rows == TOKENS),
    }


def _expand_arguments(node: Node) -> dict[str, int | Dim]:
    table, shared = _shared(node)
    out = whole(output(node))
    return {
        **shared,
        "count": len(table.site.parts),
        "first_output": table.site.first_output,
        "out_stride": out.columns,
        "by_token": int(out.buffer.rows == TOKENS),
    }


EXPERT_ADAPTER_SHRINK = NativeOp(
    "expert_adapter_shrink",
    pointers={
        "x": "",
        "chosen": "f32, of `route`",
        "adapters": "csrc/adapters.h",
        "out": f"{LOW}, f32, by place",
    },
    ints={
        **_SHARED,
        "k": "columns of x",
        "x_kind": "f32, bf16",
        "by_token?": "rows of x are tokens, not places",
        "weigh?": "times the token's weight",
    },
    columns=("adapter",),
    arguments=_shrink_arguments,
    rows={"x": None, "chosen": TOKENS},
)
EXPERT_ADAPTER_EXPAND = NativeOp(
    "expert_adapter_expand",
    pointers={
        "x": f"{LOW}, f32, by place",
        "chosen": "f32, of `route`",
        "adapters": "csrc/adapters.h",
        "parts": "int32 [count][4], see `adapter_expand`",
        "out": "f32, out += B x",
    },
    ints={
        **_SHARED,
        "count": "parts of an expert",
        "first_output": "the first expert's first matrix B",
        "out_stride": "",
        "by_token?": "rows of out are tokens, not places",
    },
    columns=("adapter",),
    arguments=_expand_arguments,
    rows={"chosen": TOKENS, "out": None},
)


class AdaptedExperts(Op):
    name = "adapted_experts"

    def __call__(
        self,
        x: Value,
        chosen: Value,
        experts: ExpertWeights,
        gate_up: AdapterSite,
        down: AdapterSite,
    ) -> Value:
        """[T, H]: `experts`, each with W + scale * B A of the token's adapter in place of W.

        Args:
            gate_up: parts gate and up of each expert.
        """
        self.require(experts.activation in _ACTIVATIONS, f"{experts.activation} has no adapters")
        return self.run(x, chosen, experts, gate_up, down)

    def reference(
        self,
        ref: ReferenceOps,
        x: Tensor,
        chosen: Tensor,
        experts: ExpertWeights,
        gate_up: AdapterSite,
        down: AdapterSite,
    ) -> Tensor:
        import torch

        from galley.kernels.ops.experts import chosen_rows, expert_of

        places = torch.from_numpy(ref.adapter_places(False))
        total = torch.zeros(x.shape[0], experts.down[0].shape[0], dtype=x.dtype)
        for expert, token, weight in chosen_rows(chosen):
            weight = weight.to(x.dtype)
            for place in places[token].unique().tolist():
                mine = places[token] == place
                adapter = ref.adapters.adapters[place] if place >= 0 else None
                added = _Added(adapter, expert, gate_up, down)
                rows = x[token[mine]]
                rows = rows * weight[mine] if experts.weigh_inputs else rows
                y = expert_of(expert, rows, experts, added)
                total.index_add_(0, token[mine], y if experts.weigh_inputs else y * weight[mine])
        return total

    def record(
        self,
        recorder: Recorder,
        x: Symbol,
        chosen: Symbol,
        experts: ExpertWeights,
        gate_up: AdapterSite,
        down: AdapterSite,
    ) -> Symbol:
        assert recorder.adapters is not None
        nodes = ExpertNodes(recorder, chosen, experts)
        weigh = int(experts.weigh_inputs)
        both = nodes.gate_up(nodes.rows(x), 2 * experts.intermediate, activation=None)
        both = _adapt(recorder, x, chosen, both, gate_up, weigh)
        activated = Symbol.new(both.buffer.rows, experts.intermediate)
        ints = {"interleaved": int(experts.up is None)}
        activation = _ACTIVATIONS[experts.activation]
        recorder.add(Node(activation, {"x": both}, {"out": activated}, ints=ints))
        out = nodes.down(activated)
        return _adapt(recorder, activated, chosen, out, down, 1 - weigh)


adapted_experts: AdaptedExperts = AdaptedExperts()


def _adapt(
    recorder: Recorder, x: Symbol, chosen: Symbol, y: Symbol, site: AdapterSite, weigh: int
) -> Symbol:
    """Add the nodes for y += scale * B (A x) of each expert. `weigh`: times the token's weight."""
    adapters = recorder.adapters
    assert adapters is not None
    table = SiteTable(adapters, site)
    columns = adapters.low_columns(site.inputs, False)
    low = Symbol.new(Dim(TOKENS.base, chosen.columns // 2), columns)
    recorder.add(
        Node(
            "expert_adapter_shrink",
            {"x": x, "chosen": chosen},
            {"out": low},
            constants={"adapters": table},
            ints={"weigh": weigh},
        )
    )
    recorder.add(
        Node(
            "expert_adapter_expand",
            {"x": low, "chosen": chosen},
            updates={"out": y},
            constants={"adapters": table, "parts": parts_of(site)},
        )
    )
    return Symbol(y.buffer, y.columns, y.start)


class _Added:
    """The terms that an adapter adds to the projections of one expert, in order gate, up, down."""

    def __init__(
        self, adapter: PackedAdapter | None, expert: int, gate_up: AdapterSite, down: AdapterSite
    ) -> None:
        self._adapter, self._expert = adapter, expert
        self._parts = [(gate_up, 0), (gate_up, 1), (down, 0)]

    def __call__(self, projection: int, x: Tensor, y: Tensor) -> Tensor:
        """y + scale * B (A x)."""
        import torch

        site, part = self._parts[projection]
        i = site.first_input + self._expert * site.inputs + site.parts[part].input
        if self._adapter is None or not self._adapter.ranks[i]:
            return y
        output = site.first_output + self._expert * len(site.parts) + part
        a = torch.from_numpy(self._adapter.matrix_a(i).astype(np.float32))
        b = torch.from_numpy(self._adapter.matrix_b(output))
        low = x.float() @ a.T * float(self._adapter.scales[i])
        return y + (low @ b.T).to(y.dtype)
