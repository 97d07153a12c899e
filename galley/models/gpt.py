"""Readers and blocks that families with layer norms and plain feed-forward blocks share."""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from galley.errors import ModelError
from galley.kernels.ops.elementwise import Function
from galley.layers.attention import AttentionSpec
from galley.layers.layer_norm import LayerNormSpec
from galley.layers.norm import NormSpec
from galley.layers.plain_mlp import PlainMLPSpec
from galley.layers.rotary import Rotary
from galley.layers.weight_specs import Part
from galley.loader.fields import MAX_LAYERS
from galley.models.config import ModelFields
from galley.models.decoder import AnyLayerSpec, DecoderSpec
from galley.models.heads import HeadSizes, plain_attention, read_heads
from galley.models.tied import with_head

#: Activations of config files → those of the op `elementwise`.
ACTIVATIONS: dict[str, Function] = {
    "gelu": "gelu",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
    "xielu": "xielu",
}


class Sizes(HeadSizes, frozen=True):
    """Sizes that every layer of such a model has."""

    vocab: int
    intermediate: int
    layers: int
    eps: float
    activation: Function
    tied: bool

    def norm(self, name: str, *, bias: bool = True, plus: float = 0.0) -> LayerNormSpec:
        """A layer norm of the hidden state."""
        return LayerNormSpec(name, self.hidden, self.eps, bias, plus)


def read_sizes(
    config: ModelFields,
    *,
    eps_key: str,
    activation_key: str = "hidden_act",
    activation: str | None = None,
    tied: bool = False,
    grouped: bool = False,
) -> Sizes:
    """The keys that these families share, under their common names (`loader.common_keys`).

    Args:
        eps_key, activation_key: where epsilon and activation stand.
        activation, tied: if the config does not say.
        grouped: query heads may share KV heads.

    Raises ModelError naming a key that is missing, out of range or not supported.
    """
    heads = read_heads(config, grouped=grouped)
    return Sizes(
        vocab=config.integer("vocab_size", least=1),
        hidden=heads.hidden,
        intermediate=config.integer("intermediate_size", 4 * heads.hidden, least=1),
        layers=config.integer("num_hidden_layers", least=1, most=MAX_LAYERS),
        heads=heads.heads,
        kv_heads=heads.kv_heads,
        head_dim=heads.head_dim,
        eps=config.number(eps_key, 1e-5),
        activation=read_activation(config, activation_key, activation),
        tied=config.flag("tie_word_embeddings", tied),
    )


def read_activation(config: ModelFields, key: str, default: str | None = None) -> Function:
    """The activation that a config names. ModelError if it is not supported."""
    name = config.text(key, default)
    if name not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ModelError(f"{config.where}: {key} = {name!r} is not supported; known: {known}")
    return ACTIVATIONS[name]


def attention(
    sizes: Sizes,
    prefix: str,
    *,
    out: str = "o_proj",
    rotary: Rotary | None = None,
    window: int = 0,
    qkv_bias: bool = True,
    out_bias: bool = True,
    slopes: tuple[float, ...] | None = None,
) -> AttentionSpec:
    """Attention with q_proj, k_proj, v_proj and `out` under `prefix`."""
    return replace(
        plain_attention(sizes, prefix, rotary, out=out),
        window=window,
        qkv_bias=qkv_bias,
        out_bias=out_bias,
        slopes=slopes,
    )


def mlp(sizes: Sizes, up: str, down: str, *, bias: bool = True) -> PlainMLPSpec:
    """A plain feed-forward block of the named tensors."""
    return PlainMLPSpec(
        up=Part(up, (sizes.intermediate, sizes.hidden)),
        down=Part(down, (sizes.hidden, sizes.intermediate)),
        activation=sizes.activation,
        bias=bias,
    )


def decoder(
    sizes: Sizes,
    layer: Callable[[int], AnyLayerSpec],
    *,
    embedding: str = "model.embed_tokens",
    norm: NormSpec,
) -> DecoderSpec:
    """A model of these layers, by their numbers, with the head in lm_head unless it is tied."""
    layers = [layer(i) for i in range(sizes.layers)]
    return with_head(Part(embedding, (sizes.vocab, sizes.hidden)), layers, norm, sizes.tied)
