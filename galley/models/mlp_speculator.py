"""MLP speculator: each head goes on from the state of the one before and from its token.

    state = gelu(norm(project(state) + weight * embedding(token)));   logits = lm_head(state)

The first state is the last hidden state. Source: Wertheimer et al. (arXiv 2404.19124).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from galley.config import ModelInfo
from galley.kernels.ops import ForwardContext, Ops, Value
from galley.layers.context import BuildContext
from galley.layers.embedding import Embedding, LMHead
from galley.layers.linear import Linear
from galley.layers.norm import RMSNormSpec
from galley.layers.scale import Multiplier
from galley.layers.weight_specs import Matrix, Part, Vector
from galley.loader.tensor import Checkpoint
from galley.models.config import model_fields
from galley.models.draft_heads import HeadModel, HeadPerDraft, Heads, Target
from galley.models.medusa import MAX_HEADS

_EPS = 1e-6


class MLPSpeculatorSpec(HeadPerDraft, frozen=True):
    """`models.draft_heads.HeadsSpec`.

    Attributes:
        heads: how many.
        hidden, inner: sizes of the model's hidden state and of the heads' own.
        tied: heads share their weights, but the first one's projection.
        scaled: the first state is normalised, and divided by the root of 2.
    """

    hidden: int
    inner: int
    vocab: int
    tied: bool
    scaled: bool
    outputs: tuple[str, ...] = ("normed",)
    chained: bool = True

    def stored_name(self, name: str) -> str | None:
        return name.removeprefix("speculator.")

    def build(self, context: BuildContext, target: Target) -> Heads:
        models = [MLPSpeculatorHead(self, i, context) for i in range(self.heads)]
        if self.tied:
            for name in ("emb.", "proj.", "head.", "ln."):
                context.source.ignore_unused(name)
        return Heads(models, [model.columns for model in models])

    def token_map(self, checkpoint: Checkpoint) -> NDArray[np.int32] | None:
        return None


class MLPSpeculatorHead(HeadModel):
    """The head of one distance."""

    def __init__(self, spec: MLPSpeculatorSpec, index: int, context: BuildContext) -> None:
        source, inner = context.source, spec.inner
        own, project = (0, min(index, 1)) if spec.tied else (index, index)
        columns = inner if index else spec.hidden
        super().__init__(columns, LMHead.load(source, Part(f"head.{own}", (spec.vocab, inner))))
        self.embedding = Embedding.load(source, Part(f"emb.{own}", (spec.vocab, inner)))
        self.project = Linear(source, Matrix((Part(f"proj.{project}", (inner, columns)),)))
        self.norm = RMSNormSpec(f"ln.{own}", inner, _EPS).build(source)
        self.shift = source.vector(Vector((Part(f"ln.{own}.bias", (inner,)),)))
        of_state = 0.5 ** (0.5 / spec.heads)
        of_token = math.sqrt((1 - of_state**2) * (inner / 2))
        self._weight = Multiplier(source, of_token / of_state)
        self._scale = Multiplier(source, 0.5**0.5)
        scaled = spec.scaled and not index
        self._first = RMSNormSpec(None, columns, _EPS).build(source) if scaled else None

    def embed(self, ops: Ops, ctx: ForwardContext) -> Value:
        state = self.given(ops)
        if self._first is not None:
            state = self._scale(ops, self._first(ops, state))
        token = self._weight(ops, self.embedding(ops, ctx.token_ids))
        return ops.add(self.project(ops, state), token)

    def forward(self, ops: Ops, hidden: Value, ctx: ForwardContext) -> Value:
        return ops.elementwise(ops.shift(self.norm(ops, hidden), self.shift), "gelu")


def mlp_speculator(info: ModelInfo, target: ModelInfo, names: Sequence[str]) -> MLPSpeculatorSpec:
    """The keys of the published speculators: n_predict, emb_dim, inner_dim …"""
    config = model_fields(info)
    size = config.integer("emb_dim", least=1)
    return MLPSpeculatorSpec(
        heads=config.integer("n_predict", least=1, most=MAX_HEADS),
        hidden=size,
        inner=config.integer("inner_dim", 0) or size,
        vocab=target.vocab_size,
        tied=config.flag("tie_weights", False),
        scaled=config.flag("scale_input", False),
    )
