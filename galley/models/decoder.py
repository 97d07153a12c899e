"""The decoder that most families share: pre-norm attention and gated MLP on a residual stream.

    h = embed(tokens)
    for each layer:   h += attention(norm(h));   h += mlp(norm(h))
    logits = head(norm(h))

A family says by `DecoderSpec` which of the variants it has. Knows no config file and no kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from galley.errors import ModelError
from galley.kernels.ops import ForwardContext, KVLayer, Ops, RotaryTable, Value
from galley.layers.attention import Attention, AttentionShape
from galley.layers.embedding import Embedding, LMHead
from galley.layers.mlp import GatedMLP
from galley.layers.norm import RMSNorm
from galley.layers.rotary import Rotary, rotary_table
from galley.layers.weights import WeightSource


@dataclass(frozen=True)
class DecoderSpec:
    """A whole model, before it is shared over ranks.

    Attributes:
        attention: sizes and biases of every attention layer.
        windows: per layer, sliding window in tokens; 0 = none.
        tied: the head's weight is the embedding's.
    """

    vocab: int
    intermediate: int
    attention: AttentionShape
    mlp_bias: bool
    norm_eps: float
    rotary: Rotary
    windows: Sequence[int]
    tied: bool


@dataclass(frozen=True)
class Stage:
    """Which part of a model a process builds.

    Attributes:
        start, end: its layers, [start, end); end None = to the last.
        max_positions: longest sequence that will ever be run, for the rotary table.
    """

    max_positions: int
    start: int = 0
    end: int | None = None


class DecoderLayer:
    """One layer: hidden [T, H] → [T, H]."""

    def __init__(
        self,
        source: WeightSource,
        prefix: str,
        spec: DecoderSpec,
        rotary: RotaryTable,
        layer: KVLayer,
    ) -> None:
        hidden, eps = spec.attention.hidden, spec.norm_eps
        self.input_norm = RMSNorm(source, f"{prefix}.input_layernorm", hidden, eps)
        self.attention = Attention(source, f"{prefix}.self_attn", spec.attention, rotary, layer)
        self.mlp_norm = RMSNorm(source, f"{prefix}.post_attention_layernorm", hidden, eps)
        self.mlp = GatedMLP(source, f"{prefix}.mlp", hidden, spec.intermediate, spec.mlp_bias)

    def __call__(self, ops: Ops, hidden: Value, ctx: ForwardContext) -> Value:
        hidden = ops.add(hidden, self.attention(ops, self.input_norm(ops, hidden), ctx))
        return ops.add(hidden, self.mlp(ops, self.mlp_norm(ops, hidden)))


class Decoder:
    """Layers [start, end) of a decoder; the first stage embeds, the last has the head.

    Attributes:
        kv_layers: the caches that this stage's layers need, in order.
    """

    def __init__(self, spec: DecoderSpec, source: WeightSource, stage: Stage) -> None:
        num_layers = len(spec.windows)
        end = num_layers if stage.end is None else stage.end
        if not 0 <= stage.start < end <= num_layers:
            raise ModelError(f"layers {stage.start} to {end} of a model of {num_layers}")
        self.vocab_size = spec.vocab
        self.kv_layers = _kv_layers(spec, source.group.size, stage.start, end)
        self._first, self._last = stage.start == 0, end == num_layers
        hidden = spec.attention.hidden
        if self._first or (self._last and spec.tied):
            self.embedding = Embedding.load(source, "model.embed_tokens", spec.vocab, hidden)
        shape = (stage.max_positions, spec.rotary.dim)
        rotary = RotaryTable(
            source.constant(shape, lambda: rotary_table(spec.rotary, stage.max_positions))
        )
        self.layers = [
            DecoderLayer(source, f"model.layers.{stage.start + layer.index}", spec, rotary, layer)
            for layer in self.kv_layers
        ]
        if self._last:
            self.norm = RMSNorm(source, "model.norm", hidden, spec.norm_eps)
            self.head = (
                LMHead(self.embedding.weight)
                if spec.tied
                else LMHead.load(source, "lm_head", spec.vocab, hidden)
            )
        self._ignore_other_stages(spec, source, stage.start, end)

    def embed(self, ops: Ops, ctx: ForwardContext) -> Value:
        """[T, H]: what `forward` of the first stage starts from."""
        assert self._first
        return self.embedding(ops, ctx.token_ids)

    def forward(self, ops: Ops, hidden: Value, ctx: ForwardContext) -> Value:
        """[T, H]: the residual stream after this stage's layers, not normalised."""
        for layer in self.layers:
            hidden = layer(ops, hidden, ctx)
        return hidden

    def logits(self, ops: Ops, hidden: Value, ctx: ForwardContext) -> Value:
        """[L, vocab] of the positions that yield logits; only on the last stage."""
        assert self._last
        # A row's norm depends on the row alone, so selecting first saves the others' work.
        selected = ops.select_rows(hidden, ctx.logit_index)
        return self.head(ops, self.norm(ops, selected))

    def _ignore_other_stages(
        self, spec: DecoderSpec, source: WeightSource, start: int, end: int
    ) -> None:
        for index in (*range(start), *range(end, len(spec.windows))):
            source.ignore_unused(f"model.layers.{index}.")
        if not self._first:
            source.ignore_unused("model.embed_tokens.")
        if not self._last:
            source.ignore_unused("model.norm.")
        if not self._last or spec.tied:
            source.ignore_unused("lm_head.")  # some checkpoints keep a copy of a tied weight


def _kv_layers(spec: DecoderSpec, ranks: int, start: int, end: int) -> list[KVLayer]:
    shape = spec.attention
    if shape.heads % ranks or shape.kv_heads % ranks:
        raise ModelError(
            f"{shape.heads} query and {shape.kv_heads} KV heads cannot be shared by {ranks} ranks"
        )
    return [
        KVLayer(index - start, shape.kv_heads // ranks, shape.head_dim, spec.windows[index])
        for index in range(start, end)
    ]
