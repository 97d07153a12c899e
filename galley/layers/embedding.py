"""Token embedding and the head that scores the vocabulary; the two may share one weight.

Every rank of a parallel group has the whole of both.
"""

from __future__ import annotations

from galley.kernels.adapters import AdapterSite
from galley.kernels.ops import Constant, Ops, Value, Weight
from galley.layers.weight_specs import Matrix, Part
from galley.layers.weights import WeightSource


class Embedding:
    """token_ids [T] → [T, hidden]."""

    def __init__(self, weight: Weight, site: AdapterSite) -> None:
        self.weight, self.site = weight, site

    @staticmethod
    def load(source: WeightSource, part: Part, further: tuple[Part, ...] = ()) -> Embedding:
        """Rows of `further` follow those of `part`."""
        (weight,) = source.matrix(Matrix((part, *further)))
        return Embedding(weight, source.sites.add_embedding(part))

    def __call__(self, ops: Ops, token_ids: Value) -> Value:
        y = ops.embedding(self.weight, token_ids)
        y = ops.adapt_embedding(token_ids, y, self.site) if ops.adapted else y
        return ops.prompt_rows(y) if ops.takes_prompt_rows else y


class LMHead:
    """x [L, hidden] → logits [L, vocab]."""

    def __init__(self, weight: Weight, site: AdapterSite, bias: Constant | None = None) -> None:
        self.weight, self.site, self.bias = weight, site, bias

    @staticmethod
    def load(source: WeightSource, part: Part) -> LMHead:
        """A head with a weight of its own and no bias."""
        (weight,) = source.matrix(Matrix((part,)))
        return LMHead(weight, source.sites.add_head(part))

    def __call__(self, ops: Ops, x: Value) -> Value:
        y = ops.linear(x, [self.weight], self.bias)
        return ops.adapt_head(x, y, self.site, self.weight) if ops.adapted else y
