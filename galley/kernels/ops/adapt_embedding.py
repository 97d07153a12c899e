"""The change that the adapters of a step's tokens make to their embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from galley.kernels.adapters import AdapterSite
from galley.kernels.ops.adapt import LOW, TABLE_INTS, expand, site_table
from galley.kernels.ops.definition import NativeOp, Op, output, whole
from galley.kernels.program import TOKENS, Dim, Node, SiteTable, Symbol
from galley.kernels.values import Value

if TYPE_CHECKING:
    from torch import Tensor

    from galley.kernels.recorder import Placeholder, Recorder
    from galley.kernels.reference import ReferenceOps


def _arguments(node: Node) -> dict[str, int | Dim]:
    table, arguments = site_table(node)
    site, adapters = table.site, table.adapters
    return {
        **arguments,
        "first_input": site.first_input,
        "max_rank": adapters.max_rank,
        "k": site.k,
        "n": whole(output(node)).columns,
        "copy": adapters.first_copy + site.copy,
    }


class AdaptEmbedding(Op):
    name = "adapt_embedding"
    native = NativeOp(
        "adapt_embedding",
        pointers={
            "adapters": "csrc/adapters.h",
            "low": f"{LOW}, f32",
            "out": "f32: the embedding, or the adapter's own",
        },
        ints={
            **TABLE_INTS,
            "first_input": "the layer's matrix A",
            "max_rank": "",
            "k": "vocabulary",
            "n": "columns of out",
            "copy": "entry of the adapter's own embedding",
        },
        columns=("adapter", "token_ids"),
        arguments=_arguments,
        rows={"out": TOKENS, "low": TOKENS},
    )

    def __call__(self, ids: Value, y: Value, site: AdapterSite) -> Value:
        """[T, N]: y + scale * B A[ids] of each token's adapter, with its own rows in place of y
        where it has a whole embedding. y may be overwritten.

        Args:
            y: [T, N] rows of the model's embedding.
        """
        self.require_columns(y, site.columns)
        return self.run(ids, y, site)

    def reference(self, ref: ReferenceOps, ids: Tensor, y: Tensor, site: AdapterSite) -> Tensor:
        import torch

        places, ids = ref.adapter_places(False), ids.flatten()
        y = y.clone()
        for place in sorted(set(places.tolist()) - {-1}):
            adapter = ref.adapters.adapters[place]
            rows = torch.from_numpy(np.flatnonzero(places == place))
            own = adapter.copy(site.copy)
            if own is not None:
                y[rows] = torch.from_numpy(own)[ids[rows]].to(y.dtype)
            if adapter.ranks[site.first_input]:
                a = torch.from_numpy(adapter.lookup_a(site.first_input).astype(np.float32))
                b = torch.from_numpy(adapter.matrix_b(site.first_output))
                low = a[ids[rows]] * float(adapter.scales[site.first_input])
                y[rows] += (low @ b.T).to(y.dtype)
        return y

    def record(self, recorder: Recorder, ids: Placeholder, y: Symbol, site: AdapterSite) -> Symbol:
        adapters = recorder.adapters
        assert adapters is not None
        table = SiteTable(adapters, site)
        low = Symbol.new(y.buffer.rows, adapters.low_columns(1, False))
        recorder.add(
            Node("adapt_embedding", {}, {"low": low}, {"out": y}, constants={"adapters": table})
        )
        return expand(recorder, low, Symbol(y.buffer, y.columns, y.start), table)


adapt_embedding: AdaptEmbedding = AdaptEmbedding()
