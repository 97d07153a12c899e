"""The change that the adapters of a step's logit rows make to the scores of the vocabulary."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from galley.kernels.adapters import AdapterSite
from galley.kernels.ops.adapt import TABLE_INTS, adapt, site_table
from galley.kernels.ops.definition import NativeOp, Op, output, whole
from galley.kernels.program import Dim, Node, SiteTable, Symbol
from galley.kernels.values import Value, Weight
from galley.kernels.weights import PackedWeight

if TYPE_CHECKING:
    from torch import Tensor

    from galley.kernels.recorder import Recorder
    from galley.kernels.reference import ReferenceOps


def _arguments(node: Node) -> dict[str, int | Dim]:
    table, arguments = site_table(node)
    x, out = whole(node.reads["x"]), whole(output(node))
    return {
        **arguments,
        "k": x.columns,
        "n": table.site.columns,
        "out_stride": out.columns,
        "copy": table.adapters.first_copy + table.site.copy,
        "rows": out.buffer.rows,
    }


class AdaptHead(Op):
    name = "adapt_head"
    native = NativeOp(
        "adapt_head",
        pointers={
            "x": "f32",
            "adapters": "csrc/adapters.h",
            "out": "f32: the scores, or those of the adapter's own head",
        },
        ints={
            **TABLE_INTS,
            "k": "columns of x",
            "n": "outputs",
            "out_stride": "",
            "copy": "entry of the adapter's own head",
            "rows?": "dimension, default tokens; or logits",
        },
        columns=("adapter",),
        arguments=_arguments,
    )

    def __call__(self, x: Value, y: Value, site: AdapterSite, weight: Weight) -> Value:
        """[L, N]: y + scale * B (A x) of each row's adapter, with the scores of its own head in
        place of y where it has a whole one. y may be overwritten.

        Args:
            x: [L, K] the input of the head.
            y: [L, N] its result.
            weight: of the head, see `adapt`.
        """
        self.require_columns(x, site.k)
        return self.run(x, y, site, weight)

    def reference(
        self, ref: ReferenceOps, x: Tensor, y: Tensor, site: AdapterSite, weight: Tensor
    ) -> Tensor:
        import torch

        places = ref.adapter_places(True)
        y = y.clone()
        for place in sorted(set(places.tolist()) - {-1}) if site.copy >= 0 else ():
            own = ref.adapters.adapters[place].copy(site.copy)
            if own is not None:
                rows = torch.from_numpy(np.flatnonzero(places == place))
                y[rows, : site.columns] = (x[rows].float() @ torch.from_numpy(own).T).to(y.dtype)
        return adapt.reference(ref, x, y, site, [weight])

    def record(
        self, recorder: Recorder, x: Symbol, y: Symbol, site: AdapterSite, weight: PackedWeight
    ) -> Symbol:
        adapters = recorder.adapters
        assert adapters is not None
        if site.copy >= 0:
            table = {"adapters": SiteTable(adapters, site)}
            recorder.add(Node("adapt_head", {"x": x}, updates={"out": y}, constants=table))
            y = Symbol(y.buffer, y.columns, y.start)
        return adapt.record(recorder, x, y, site, [weight])


adapt_head: AdaptHead = AdaptHead()
