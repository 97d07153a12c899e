"""Readers and blocks that families with layer norms and plain feed-forward blocks share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from galley.errors import ModelError
from galley.kernels.ops.elementwise import Function
from galley.layers.attention import AttentionSpec
from galley.layers.layer_norm import LayerNormSpec
from galley.layers.norm import NormSpec
from galley.layers.plain_mlp import PlainMLPSpec
from galley.layers.questions import Part
from galley.layers.rotary import Rotary
from galley.loader.fields import MAX_HEAD_DIM, MAX_HEADS, MAX_LAYERS
from galley.models.config import ModelFields
from galley.models.decoder import AnyLayerSpec, DecoderSpec

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
    "xielu": "xielu",
}


@dataclass(frozen=True)
class Sizes:
    """Sizes that every layer of such a model has."""

    vocab: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
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
    hidden = config.integer("hidden_size", least=1)
    heads = config.integer("num_attention_heads", least=1, most=MAX_HEADS)
    kv_heads = heads
    if grouped:
        kv_heads = config.integer("num_key_value_heads", heads, least=1, most=MAX_HEADS)
    if not config.has("head_dim") and hidden % heads:
        raise config.wrong("hidden_size", f"a multiple of num_attention_heads={heads}")
    if heads % kv_heads:
        raise config.wrong("num_key_value_heads", f"a divisor of {heads}, the number of heads")
    head_dim = config.integer("head_dim", hidden // heads, least=2, most=MAX_HEAD_DIM)
    if head_dim % 2:
        raise config.wrong("head_dim", "even")
    return Sizes(
        vocab=config.integer("vocab_size", least=1),
        hidden=hidden,
        intermediate=config.integer("intermediate_size", 4 * hidden, least=1),
        layers=config.integer("num_hidden_layers", least=1, most=MAX_LAYERS),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
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
    d = sizes.head_dim
    q, kv = sizes.heads * d, sizes.kv_heads * d
    return AttentionSpec(
        q=Part(f"{prefix}.q_proj", (q, sizes.hidden)),
        k=Part(f"{prefix}.k_proj", (kv, sizes.hidden)),
        v=Part(f"{prefix}.v_proj", (kv, sizes.hidden)),
        out=Part(f"{prefix}.{out}", (sizes.hidden, q)),
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        head_dim=d,
        scale=d**-0.5,
        rotary=rotary,
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
    return DecoderSpec(
        embedding=Part(embedding, (sizes.vocab, sizes.hidden)),
        layers=[layer(i) for i in range(sizes.layers)],
        norm=norm,
        head=None if sizes.tied else Part("lm_head", (sizes.vocab, sizes.hidden)),
        # Some checkpoints contain a copy of a tied weight.
        ignored=("lm_head.",) if sizes.tied else (),
    )
