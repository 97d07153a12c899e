"""EAGLE and EAGLE 3: layers like the model's own, which guess its next hidden state.

    EAGLE     hidden = layers(fc(embedding(token) | hidden))
    EAGLE 3   hidden = fc(hidden of three layers), for the model's own positions
              hidden += attention(norm(embedding(token)) | norm(hidden))
              hidden += mlp(norm(hidden))

Position t has the hidden state of token t and the embedding of token t + 1. Sources: Li et al.
(arXiv 2401.15077, 2503.01840); tensors are named as in their checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from galley.config import ModelInfo
from galley.errors import ModelError
from galley.kernels.ops import CacheLayer, ForwardContext, Ops, Value, Weight
from galley.layers.attention import AttentionSpec
from galley.layers.context import BuildContext
from galley.layers.embedding import Embedding, LMHead
from galley.layers.linear import Linear
from galley.layers.norm import RMSNormSpec
from galley.layers.shapes import ShapeSource
from galley.layers.weight_specs import Matrix, Part
from galley.loader.tensor import Checkpoint
from galley.models.config import ModelFields, model_fields
from galley.models.decoder import AnyLayerSpec, Layer, LayerSpec
from galley.models.draft_heads import HeadModel, Heads, Target
from galley.models.llama import Sizes, layer, read_sizes

#: Drafts without num_speculative_tokens: each costs a pass of the heads.
DEFAULT_DRAFTS = 3
_LAYERS = "model."


class EagleSpec(msgspec.Struct, frozen=True):
    """`models.draft_heads.HeadsSpec` of EAGLE.

    Attributes:
        hidden: size of the model's hidden state and of the heads'.
        owns_embedding, owns_head: the checkpoint has them; else they are the model's.
    """

    layers: tuple[LayerSpec, ...]
    hidden: int
    vocab: int
    owns_embedding: bool
    owns_head: bool
    outputs: tuple[str, ...] = ("normed",)
    most: int | None = None
    default: int = DEFAULT_DRAFTS
    chained: bool = True

    def stored_name(self, name: str) -> str | None:
        return _with_prefix(name)

    def caches(self, before: Sequence[CacheLayer]) -> list[CacheLayer]:
        return layer_caches(self.layers, before)

    def build(self, context: BuildContext, target: Target) -> Heads:
        h = self.hidden
        embedding = _embedding(context, self.owns_embedding, (self.vocab, h), target)
        head = _head(context, self.vocab, h) if self.owns_head else target.head
        join = Linear(context.source, Matrix((Part("model.fc", (h, 2 * h)),)))
        layers = [spec.build(context) for spec in self.layers]
        return Heads([EagleHead(h, head, embedding, join, layers)], [h])

    def token_map(self, checkpoint: Checkpoint) -> NDArray[np.int32] | None:
        return None


class EagleHead(HeadModel):
    """One pass of EAGLE."""

    def __init__(
        self, hidden: int, head: LMHead, embedding: Embedding, join: Linear, layers: Sequence[Layer]
    ) -> None:
        super().__init__(hidden, head)
        self.embedding, self.join, self.layers = embedding, join, layers

    def embed(self, ops: Ops, ctx: ForwardContext) -> Value:
        return self.join(ops, ops.concat(self.embedding(ops, ctx.token_ids), self.given(ops)))

    def forward(self, ops: Ops, hidden: Value, ctx: ForwardContext) -> Value:
        for one in self.layers:
            hidden = one(ops, hidden, ctx)
        return hidden


class Eagle3Spec(msgspec.Struct, frozen=True):
    """`models.draft_heads.HeadsSpec` of EAGLE 3.

    Attributes:
        layer: its attention reads embedding and hidden state, side by side.
        hidden, target_hidden: sizes of the hidden states.
        mapped: tokens of its own vocabulary, if that is not the model's; else 0.
        residual_normed: the residual stream begins with the normed hidden state.
    """

    layer: LayerSpec
    hidden: int
    target_hidden: int
    vocab: int
    eps: float
    mapped: int
    residual_normed: bool
    owns_embedding: bool
    owns_head: bool
    outputs: tuple[str, ...]
    most: int | None = None
    default: int = DEFAULT_DRAFTS
    chained: bool = True

    def stored_name(self, name: str) -> str | None:
        return _with_prefix(name.replace("midlayer.", "layers.0."))

    def caches(self, before: Sequence[CacheLayer]) -> list[CacheLayer]:
        return layer_caches([self.layer], before)

    def build(self, context: BuildContext, target: Target) -> Heads:
        source, h = context.source, self.hidden
        columns = self.target_hidden * len(self.outputs)
        embedding = _embedding(context, self.owns_embedding, (self.vocab, h), target)
        head = _head(context, self.mapped or self.vocab, h) if self.owns_head else target.head
        join = Linear(source, Matrix((Part("model.fc", (h, columns)),)))
        block = Eagle3Block(self, context)
        for name in ("d2t", "t2d"):
            source.ignore_unused(f"model.{name}")
        models = [
            Eagle3Head(columns, head, embedding, join, block),
            Eagle3Head(h, head, embedding, None, block),
        ]
        return Heads(models, [columns, h])

    def token_map(self, checkpoint: Checkpoint) -> NDArray[np.int32] | None:
        if not self.mapped:
            return None
        offsets = np.array(checkpoint.tensor("model.d2t").data, np.int64)
        return (np.arange(len(offsets)) + offsets).astype(np.int32)


class Eagle3Block:
    """The layer of EAGLE 3, which its first pass and the later ones share."""

    def __init__(self, spec: Eagle3Spec, context: BuildContext) -> None:
        source, h, name = context.source, spec.hidden, "model.layers.0"
        assert spec.layer.mixer is not None
        assert spec.layer.mlp is not None
        self.embedding_norm, self.hidden_norm, self.mlp_norm = (
            RMSNormSpec(f"{name}.{norm}", h, spec.eps).build(source)
            for norm in ("input_layernorm", "hidden_norm", "post_attention_layernorm")
        )
        self.mixer, self.mlp = spec.layer.mixer.build(context), spec.layer.mlp.build(context)
        self.norm = RMSNormSpec("model.norm", h, spec.eps).build(source)
        self._residual_normed = spec.residual_normed

    def __call__(self, ops: Ops, token: Value, hidden: Value, ctx: ForwardContext) -> Value:
        normed = self.hidden_norm(ops, hidden)
        both = ops.concat(self.embedding_norm(ops, token), normed)
        residual = normed if self._residual_normed else hidden
        hidden = ops.add(residual, self.mixer(ops, both, ctx))
        return ops.add(hidden, self.mlp(ops, self.mlp_norm(ops, hidden)))


class Eagle3Head(HeadModel):
    """A pass of EAGLE 3: the first joins the model's hidden states, later ones have its own."""

    def __init__(
        self,
        columns: int,
        head: LMHead,
        embedding: Embedding,
        join: Linear | None,
        block: Eagle3Block,
    ) -> None:
        super().__init__(columns, head)
        self.embedding, self.join, self.block = embedding, join, block

    def embed(self, ops: Ops, ctx: ForwardContext) -> Value:
        given = self.given(ops)
        return given if self.join is None else self.join(ops, given)

    def forward(self, ops: Ops, hidden: Value, ctx: ForwardContext) -> Value:
        return self.block(ops, self.embedding(ops, ctx.token_ids), hidden, ctx)

    def final_norm(self, ops: Ops, hidden: Value) -> Value:
        return self.block.norm(ops, hidden)


def layer_caches(layers: Sequence[AnyLayerSpec], before: Sequence[CacheLayer]) -> list[CacheLayer]:
    """The caches of layers, behind those of the model."""
    context = BuildContext(ShapeSource(), 1, before)
    for spec in layers:
        spec.build(context)
    return context.kv_layers[len(before) :]


def eagle(info: ModelInfo, target: ModelInfo, names: Sequence[str]) -> EagleSpec:
    """Layers like Llama's, or like Qwen2's where they have biases; the first has no norm before."""
    config, sizes = _sizes(info, target)
    if sizes.hidden != _hidden(target):
        raise ModelError(
            f"{config.where}: hidden_size is {sizes.hidden}, the model's {_hidden(target)}"
        )
    bias = any(name.endswith("q_proj.bias") for name in names)
    layers = [layer(sizes, i, qkv_bias=bias) for i in range(sizes.layers)]
    layers[0] = replace(layers[0], mixer_norm=None)
    return EagleSpec(
        layers=tuple(layers),
        hidden=sizes.hidden,
        vocab=target.vocab_size,
        owns_embedding=_has(names, "embed_tokens.weight"),
        owns_head=_has(names, "lm_head.weight"),
    )


def eagle3(info: ModelInfo, target: ModelInfo, names: Sequence[str]) -> Eagle3Spec:
    """One layer like Llama's."""
    config, sizes = _sizes(info, target)
    config.require("num_hidden_layers", 1, default=1)
    one = layer(sizes, 0, qkv_bias=config.flag("attention_bias", False))
    assert isinstance(one.mixer, AttentionSpec)
    q, k, v = (
        replace(part, shape=(part.shape[0], 2 * sizes.hidden))
        for part in (one.mixer.q, one.mixer.k, one.mixer.v)
    )
    mapped = config.integer("draft_vocab_size", 0)
    return Eagle3Spec(
        layer=replace(one, mixer=replace(one.mixer, q=q, k=k, v=v)),
        hidden=sizes.hidden,
        target_hidden=config.integer("target_hidden_size", _hidden(target), least=1),
        vocab=target.vocab_size,
        eps=sizes.eps,
        mapped=mapped if mapped and _has(names, "d2t") else 0,
        residual_normed=config.flag("norm_before_residual", False),
        owns_embedding=_has(names, "embed_tokens.weight"),
        owns_head=_has(names, "lm_head.weight"),
        outputs=tuple(f"layer.{i}" for i in _read_layers(config, target)),
    )


def _read_layers(config: ModelFields, target: ModelInfo) -> list[int]:
    """The layers whose inputs it reads: of the config, or an early, a middle and a late one."""
    own = config.within("eagle_config")
    key = "eagle_aux_hidden_state_layer_ids"
    layers = model_fields(target).integer("num_hidden_layers", least=1)
    ids = own.ids(key) or config.ids(key) or (2, layers // 2, layers - 3)
    for i in ids:
        if i >= layers:
            raise config.wrong(key, f"layers of a model of {layers}")
    return list(ids)


def _sizes(info: ModelInfo, target: ModelInfo) -> tuple[ModelFields, Sizes]:
    config = model_fields(info)
    return config, read_sizes(config)


def _hidden(target: ModelInfo) -> int:
    return model_fields(target).integer("hidden_size", least=1)


def _has(names: Sequence[str], end: str) -> bool:
    return any(name in (end, f"model.{end}") for name in names)


def _with_prefix(name: str) -> str:
    """The name with Llama's prefix, which some checkpoints have."""
    return name if name.startswith((_LAYERS, "lm_head.")) else _LAYERS + name


def _embedding(
    context: BuildContext, owned: bool, shape: tuple[int, int], target: Target
) -> Embedding:
    """The heads' own embedding, or the model's. Raises ModelError if that has another size."""
    if owned:
        return Embedding.load(context.source, Part("model.embed_tokens", shape))
    _require(target.embedding.weight, shape[1], "embed_tokens")
    return target.embedding


def _head(context: BuildContext, vocab: int, hidden: int) -> LMHead:
    return LMHead.load(context.source, Part("lm_head", (vocab, hidden)))


def _require(weight: Weight, hidden: int, name: str) -> None:
    if weight.shape[1] != hidden:
        raise ModelError(
            f"the draft heads have no {name} and a hidden size of {hidden}, not the model's "
            f"{weight.shape[1]}"
        )
