"""Gemma 1: norms that store w for 1 + w, scaled embeddings, GELU in the MLP."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.layers.norm import HeadNormSpec, RMSNormSpec
from galley.models.config import ModelFields, model_fields
from galley.models.decoder import DecoderSpec, LayerSpec
from galley.models.llama import Sizes, attention, decoder, layer, mlp, read_sizes


def gemma_fields(model_info: ModelInfo) -> ModelFields:
    """The config of any Gemma: embeddings are tied where it does not say."""
    config = model_fields(model_info).with_defaults(tie_word_embeddings=True)
    return config


def gemma_sizes(config: ModelFields, act_key: str = "hidden_activation") -> Sizes:
    return read_sizes(config, act_key=act_key, activations=("gelu_tanh",))


def norm(sizes: Sizes, name: str) -> RMSNormSpec:
    return RMSNormSpec(name, sizes.hidden, sizes.eps, plus=1.0)


def head_norm(sizes: Sizes, name: str) -> HeadNormSpec:
    return HeadNormSpec(name, sizes.head_dim, sizes.eps, plus=1.0)


def gemma_decoder(sizes: Sizes, layers: Sequence[LayerSpec]) -> DecoderSpec:
    return replace(
        decoder(sizes, layers),
        norm=norm(sizes, "model.norm"),
        embedding_scale=sizes.hidden**0.5,
    )


def gemma(model_info: ModelInfo) -> DecoderSpec:
    config = gemma_fields(model_info)
    # Old checkpoints say "gelu" in hidden_act and were trained with the tanh form.
    if config.values.get("hidden_act") == "gelu":
        config = config.replaced(hidden_act="gelu_pytorch_tanh")
    sizes = gemma_sizes(config, "hidden_act")
    bias = config.flag("attention_bias", False)
    layers = [
        replace(
            layer(sizes, i, qkv_bias=bias, out_bias=bias),
            mixer_norm=norm(sizes, f"model.layers.{i}.input_layernorm"),
            mlp_norm=norm(sizes, f"model.layers.{i}.post_attention_layernorm"),
        )
        for i in range(sizes.layers)
    ]
    return gemma_decoder(sizes, layers)


def sandwich_layer(sizes: Sizes, index: int, *, window: int, bias: bool) -> LayerSpec:
    """A layer of Gemma 2 and later: a norm before and after each block."""
    prefix = f"model.layers.{index}"
    return LayerSpec(
        mixer=attention(sizes, f"{prefix}.self_attn", window=window, qkv_bias=bias, out_bias=bias),
        mlp=mlp(sizes, f"{prefix}.mlp"),
        mixer_norm=norm(sizes, f"{prefix}.input_layernorm"),
        mixer_out_norm=norm(sizes, f"{prefix}.post_attention_layernorm"),
        mlp_norm=norm(sizes, f"{prefix}.pre_feedforward_layernorm"),
        mlp_out_norm=norm(sizes, f"{prefix}.post_feedforward_layernorm"),
    )
