"""Llama and the families that differ from it by config values: Llama 2 and 3, SmolLM2.

Also the readers and tensor names that its descendants share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.layers.attention import AttentionSpec
from galley.layers.mlp import GatedActivation, MLPSpec
from galley.layers.norm import HeadNormSpec, RMSNormSpec
from galley.layers.rotary import Rotary
from galley.layers.weight_specs import Part, fuse
from galley.loader.fields import MAX_LAYERS
from galley.models.config import ModelFields, model_fields, read_rotary
from galley.models.decoder import AnyLayerSpec, DecoderSpec, LayerSpec
from galley.models.heads import HeadSizes, plain_attention, read_heads
from galley.models.tied import with_head

#: Activations as configs name them.
ACTIVATIONS: dict[str, GatedActivation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
}


class Sizes(HeadSizes, frozen=True):
    """Sizes that every layer of a Llama-like model has, and its rotary embedding."""

    vocab: int
    intermediate: int
    layers: int
    eps: float
    rotary: Rotary
    tied: bool
    activation: GatedActivation = "silu"


def read_sizes(
    config: ModelFields,
    *,
    theta: float = 10000.0,
    eps: float = 1e-6,
    partial_rotary: bool = False,
    interleaved: bool = False,
    act_key: str = "hidden_act",
    activations: Sequence[GatedActivation] = ("silu",),
) -> Sizes:
    """The keys that all these families share.

    Args:
        theta, eps: rotary base and epsilon of norms if the config has none.
        partial_rotary: the family may rotate the first part of each head alone.
        interleaved: of the rotary embedding, as in `Rotary`.
        act_key: where the config names the activation of the MLP.
        activations: those that the family may have, its default first.

    Raises ModelError naming a key that is missing, out of range or not supported.
    """
    names = [name for name, act in ACTIVATIONS.items() if act in activations]
    config.require(act_key, *names, default=names[0])
    heads = read_heads(config)
    return Sizes(
        vocab=config.integer("vocab_size", least=1),
        hidden=heads.hidden,
        intermediate=config.integer("intermediate_size", least=1),
        layers=config.integer("num_hidden_layers", least=1, most=MAX_LAYERS),
        heads=heads.heads,
        kv_heads=heads.kv_heads,
        head_dim=heads.head_dim,
        eps=config.number("rms_norm_eps", eps),
        rotary=read_rotary(
            config, heads.head_dim, theta, partial=partial_rotary, interleaved=interleaved
        ),
        tied=config.flag("tie_word_embeddings", False),
        activation=ACTIVATIONS[config.text(act_key, names[0])],
    )


def attention(
    sizes: Sizes,
    prefix: str,
    *,
    window: int = 0,
    qkv_bias: bool = False,
    out_bias: bool = False,
    qk_norm: bool = False,
) -> AttentionSpec:
    """Attention with q_proj, k_proj, v_proj and o_proj (q_norm and k_norm) under `prefix`."""
    d = sizes.head_dim
    return replace(
        plain_attention(sizes, prefix, sizes.rotary),
        window=window,
        qkv_bias=qkv_bias,
        out_bias=out_bias,
        q_norm=HeadNormSpec(f"{prefix}.q_norm", d, sizes.eps) if qk_norm else None,
        k_norm=HeadNormSpec(f"{prefix}.k_norm", d, sizes.eps) if qk_norm else None,
    )


def mlp(sizes: Sizes, prefix: str, bias: bool = False) -> MLPSpec:
    """A gated MLP with gate_proj, up_proj and down_proj under `prefix`."""
    return MLPSpec(
        gate=Part(f"{prefix}.gate_proj", (sizes.intermediate, sizes.hidden)),
        up=Part(f"{prefix}.up_proj", (sizes.intermediate, sizes.hidden)),
        down=Part(f"{prefix}.down_proj", (sizes.hidden, sizes.intermediate)),
        bias=bias,
        activation=sizes.activation,
    )


def layer(
    sizes: Sizes,
    index: int,
    *,
    window: int = 0,
    qkv_bias: bool = False,
    out_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: bool = False,
) -> LayerSpec:
    """A pre-norm layer of attention and a gated MLP, with Llama's tensor names."""
    prefix = f"model.layers.{index}"
    return LayerSpec(
        mixer=attention(
            sizes,
            f"{prefix}.self_attn",
            window=window,
            qkv_bias=qkv_bias,
            out_bias=out_bias,
            qk_norm=qk_norm,
        ),
        mlp=mlp(sizes, f"{prefix}.mlp", mlp_bias),
        mixer_norm=RMSNormSpec(f"{prefix}.input_layernorm", sizes.hidden, sizes.eps),
        mlp_norm=RMSNormSpec(f"{prefix}.post_attention_layernorm", sizes.hidden, sizes.eps),
    )


def with_attention(one: LayerSpec, **changes: Any) -> LayerSpec:
    """The layer with other values of its `AttentionSpec`."""
    assert isinstance(one.mixer, AttentionSpec)
    return replace(one, mixer=replace(one.mixer, **changes))


def with_fused_qkv(one: LayerSpec, name: str) -> LayerSpec:
    """The layer with q, k and v one after the other in the tensor of this name."""
    assert isinstance(one.mixer, AttentionSpec)
    q, k, v = fuse(name, (one.mixer.q, one.mixer.k, one.mixer.v))
    return with_attention(one, q=q, k=k, v=v)


def decoder(sizes: Sizes, layers: Sequence[AnyLayerSpec]) -> DecoderSpec:
    """A model of these layers, with Llama's names for the other tensors."""
    embedding = Part("model.embed_tokens", (sizes.vocab, sizes.hidden))
    norm = RMSNormSpec("model.norm", sizes.hidden, sizes.eps)
    return with_head(embedding, layers, norm, sizes.tied)


def biased_layers(config: ModelFields, sizes: Sizes) -> list[LayerSpec]:
    """Layers without windows, with the biases that the config names."""
    bias, mlp_bias = config.flag("attention_bias", False), config.flag("mlp_bias", False)
    return [
        layer(sizes, i, qkv_bias=bias, out_bias=bias, mlp_bias=mlp_bias)
        for i in range(sizes.layers)
    ]


def llama(model_info: ModelInfo) -> DecoderSpec:
    """Biases by config, no window."""
    config = model_fields(model_info)
    sizes = read_sizes(config)
    return decoder(sizes, biased_layers(config, sizes))
