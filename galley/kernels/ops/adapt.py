"""The terms that the adapters of a step's rows add to a linear layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from galley.kernels.adapters import AdapterSite, AdapterTable
from galley.kernels.ops.definition import NativeOp, Op, output, whole
from galley.kernels.program import Constant, Dim, Kind, Node, SiteTable, Symbol
from galley.kernels.values import Value, Weight
from galley.kernels.weights import PackedWeight

if TYPE_CHECKING:
    from torch import Tensor

    from galley.kernels.recorder import Recorder
    from galley.kernels.reference import ReferenceOps

TABLE_INTS = {
    "width": "entries of a row of the table",
    "all_inputs": "matrices A of the model",
    "all_outputs": "matrices B of the model",
    "bf16?": "numbers of adapters: 0 f32, 1 bf16",
}
_SHARED = {
    **TABLE_INTS,
    "first_input": "the layer's first matrix A",
    "inputs": "its matrices A",
    "max_rank": "",
    "rows?": "dimension, default tokens; or logits",
}


#: The facts about the site that the op that adds B (A x) needs.
EXPAND_INTS = {
    **_SHARED,
    "count": "of parts",
    "first_output": "the layer's first matrix B",
}
LOW, LOW_KIND = "scale * A x (csrc/adapters.h)", "f32, bf16"
PARTS = "int32 [count][4]: input, outputs, first column, columns from panel to panel"


def site_table(node: Node) -> tuple[SiteTable, dict[str, int | Dim]]:
    """The constant `adapters`, and the arguments `TABLE_INTS`."""
    table = node.constants["adapters"]
    assert isinstance(table, SiteTable)
    adapters = table.adapters
    return table, {
        "width": adapters.table.shape[1],
        "all_inputs": adapters.num_inputs,
        "all_outputs": adapters.num_outputs,
        "bf16": int(adapters.bf16),
    }


def table_arguments(node: Node) -> tuple[SiteTable, dict[str, int | Dim]]:
    table, arguments = site_table(node)
    adapters, site = table.adapters, table.site
    return table, {
        **arguments,
        "first_input": site.first_input,
        "inputs": site.inputs,
        "max_rank": adapters.max_rank,
        "rows": output(node).buffer.rows,
    }


def _shrink_arguments(node: Node) -> dict[str, int | Dim]:
    table, shared = table_arguments(node)
    x = node.reads["x"]
    whole(output(node))
    own = {"k": table.site.k, "x_kind": int(x.kind), "x_stride": x.buffer.columns}
    return {**shared, **own}


def expand_arguments(node: Node) -> dict[str, int | Dim]:
    """The arguments `EXPAND_INTS`."""
    table, shared = table_arguments(node)
    own = {"count": len(table.site.parts), "first_output": table.site.first_output}
    return {**shared, **own}


def _expand_arguments(node: Node) -> dict[str, int | Dim]:
    own = {
        "x_kind": int(whole(node.reads["x"]).kind),
        "out_stride": whole(output(node)).buffer.columns,
    }
    return {**expand_arguments(node), **own}


ADAPTER_SHRINK = NativeOp(
    "adapter_shrink",
    pointers={"x": "", "adapters": "csrc/adapters.h", "out": LOW},
    ints={**_SHARED, "k": "inputs of the layer", "x_kind": LOW_KIND, "x_stride?": "default k"},
    columns=("adapter",),
    arguments=_shrink_arguments,
)
ADAPTER_EXPAND = NativeOp(
    "adapter_expand",
    pointers={
        "x": LOW,
        "adapters": "csrc/adapters.h",
        "parts": PARTS,
        "out": "f32, out += B x",
    },
    ints={**EXPAND_INTS, "x_kind": LOW_KIND, "out_stride": ""},
    columns=("adapter",),
    arguments=_expand_arguments,
)


class Adapt(Op):
    name = "adapt"

    def __call__(self, x: Value, y: Value, site: AdapterSite, weights: Sequence[Weight]) -> Value:
        """[T, N]: y + scale * B (A x) of each row's adapter. y may be overwritten.

        Args:
            x: [T, K] the input of the layer.
            y: [T, N] its result.
            weights: of the layer. Where they are multiplied with x in bf16, A is too.
        """
        self.require_columns(x, site.k)
        return self.run(x, y, site, weights)

    def reference(
        self, ref: ReferenceOps, x: Tensor, y: Tensor, site: AdapterSite, weights: Sequence[Tensor]
    ) -> Tensor:
        import torch

        places = ref.adapter_places(site.logits)
        y = y.clone()
        for place in sorted(set(places.tolist()) - {-1}):
            adapter = ref.adapters.adapters[place]
            rows = torch.from_numpy(np.flatnonzero(places == place))
            for i, part in enumerate(site.parts):
                number = site.first_input + part.input
                if not adapter.ranks[number]:
                    continue
                a = torch.from_numpy(adapter.matrix_a(number).astype(np.float32))
                b = torch.from_numpy(adapter.matrix_b(site.first_output + i))
                low = x[rows].float() @ a.T * float(adapter.scales[number])
                columns = torch.from_numpy(part.columns)
                at = rows[:, None], columns
                affine = adapter.gains_and_shifts(site.first_output + i)
                if affine is None:
                    y[at] += (low @ b.T).to(y.dtype)
                else:
                    gain, shift = map(torch.from_numpy, affine)
                    y[at] = (y[at].float() * gain + low @ b.T + shift).to(y.dtype)
        return y

    def record(
        self,
        recorder: Recorder,
        x: Symbol,
        y: Symbol,
        site: AdapterSite,
        weights: Sequence[PackedWeight],
    ) -> Symbol:
        adapters: AdapterTable | None = recorder.adapters
        assert adapters is not None
        # The rows that the layer itself reads, if these are of floats.
        is_bf16 = adapters.bf16 and recorder.kinds_for(weights) == {Kind.bf16}
        rows = recorder.rounded(x, Kind.bf16) if is_bf16 else x
        columns = adapters.low_columns(site.inputs, rows.kind == Kind.bf16)
        low = Symbol.new(y.buffer.rows, columns, rows.kind)
        table = {"adapters": SiteTable(adapters, site)}
        recorder.add(Node("adapter_shrink", {"x": rows}, {"out": low}, constants=table))
        return expand(recorder, low, y, table["adapters"])


def expand(recorder: Recorder, low: Symbol, y: Symbol, table: SiteTable) -> Symbol:
    """Add the node for y += B low."""
    constants: dict[str, Constant] = {"adapters": table, "parts": parts_of(table.site)}
    recorder.add(Node("adapter_expand", {"x": low}, updates={"out": y}, constants=constants))
    return Symbol(y.buffer, y.columns, y.start)


def parts_of(site: AdapterSite) -> NDArray[np.int32]:
    """[parts, 4] as native code reads them."""
    return np.array([(p.input, p.outputs, p.column, p.step) for p in site.parts], np.int32)


adapt: Adapt = Adapt()
