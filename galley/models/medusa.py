"""Medusa: each head guesses the token at its distance from the last hidden state alone.

    hidden = hidden + silu(linear(hidden)), for each layer;   logits = lm_head(hidden)

Source: Cai et al. (arXiv 2401.10774). Tensors are named as in its own checkpoints or as in vLLM's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from galley.config import ModelInfo
from galley.errors import ModelError
from galley.kernels.ops import ForwardContext, Ops, Value
from galley.layers.context import BuildContext
from galley.layers.embedding import LMHead
from galley.layers.linear import Linear
from galley.layers.weight_specs import Matrix, Part
from galley.loader.fields import MAX_LAYERS
from galley.loader.tensor import Checkpoint
from galley.models.config import model_fields
from galley.models.draft_heads import HeadModel, HeadPerDraft, Heads, Target

#: Most heads, against nonsense.
MAX_HEADS = 63
_OWN_NAMES = re.compile(r"(?:medusa_heads\.)?(\d+)\.(\d+)\.(?:(linear)\.)?(weight|bias)")


class MedusaSpec(HeadPerDraft, frozen=True):
    """`models.draft_heads.HeadsSpec`.

    Attributes:
        heads, layers: how many, and of each.
        bias: of its linear layers.
        shared: all heads score with the first one's matrix.
        mapped: the heads score a part of the vocabulary, of so many tokens; 0 = all of it.
    """

    layers: int
    hidden: int
    vocab: int
    bias: bool
    shared: bool
    mapped: int
    outputs: tuple[str, ...] = ("normed",)
    chained: bool = False

    def stored_name(self, name: str) -> str | None:
        """Medusa's own names as vLLM's: 1.0.linear.weight → blocks.1.layers.0.weight."""
        own = _OWN_NAMES.fullmatch(name)
        if own is None:
            return name.removeprefix("medusa_heads.")
        head, layer, linear, kind = own.groups()
        return f"blocks.{head}.layers.{layer}.{kind}" if linear else f"lm_heads.{head}.{kind}"

    def build(self, context: BuildContext, target: Target) -> Heads:
        if self.mapped:
            context.source.ignore_unused("token_map")
        models = [MedusaHead(self, i, context) for i in range(self.heads)]
        return Heads(models, [self.hidden] * self.heads)

    def token_map(self, checkpoint: Checkpoint) -> NDArray[np.int32] | None:
        if not self.mapped:
            return None
        return np.array(checkpoint.tensor("token_map").data, np.int32)


class MedusaHead(HeadModel):
    """The head of one distance."""

    def __init__(self, spec: MedusaSpec, index: int, context: BuildContext) -> None:
        source, size = context.source, spec.hidden
        name = f"lm_heads.{0 if spec.shared else index}"
        super().__init__(size, LMHead.load(source, Part(name, (spec.mapped or spec.vocab, size))))
        self.layers = [
            Linear(source, Matrix((Part(f"blocks.{index}.layers.{i}", (size, size)),)), spec.bias)
            for i in range(spec.layers)
        ]

    def forward(self, ops: Ops, hidden: Value, ctx: ForwardContext) -> Value:
        for layer in self.layers:
            hidden = ops.add(hidden, ops.elementwise(layer(ops, hidden), "silu"))
        return hidden


def medusa(info: ModelInfo, target: ModelInfo, names: Sequence[str]) -> MedusaSpec:
    """Medusa's own keys (medusa_num_heads) and vLLM's (num_heads)."""
    config = model_fields(info)
    heads = config.integer("medusa_num_heads", config.integer("num_heads", 5), least=1)
    layers = config.integer("medusa_num_layers", config.integer("num_hidden_layers", 1), least=1)
    if heads > MAX_HEADS or layers > MAX_LAYERS:
        raise ModelError(f"{config.where}: {heads} heads of {layers} layers are too many")
    vocab = target.vocab_size
    mapped = config.integer("truncated_vocab_size", 0)
    return MedusaSpec(
        heads=heads,
        layers=layers,
        hidden=config.integer("hidden_size", model_fields(target).integer("hidden_size"), least=1),
        vocab=vocab,
        bias=any(name.endswith("bias") for name in names),
        shared=config.flag("original_lm_head", False),
        mapped=mapped if mapped and mapped < vocab and "token_map" in names else 0,
    )
