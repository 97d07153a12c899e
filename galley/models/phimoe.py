"""Phi-3.5-MoE: layer norms, biases, and experts whose weights are a softmax over near logits."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.kernels.ops.route import Routing, Score
from galley.layers.layer_norm import LayerNormSpec
from galley.models.config import ModelFields, model_fields
from galley.models.decoder import DecoderSpec, LayerSpec
from galley.models.llama import Sizes, decoder, layer, read_sizes
from galley.models.mixture import experts, mixture, read_routing


def phimoe(model_info: ModelInfo) -> DecoderSpec:
    config = model_fields(model_info)
    sizes = read_sizes(config, theta=1e6, eps=1e-5)
    # Logits within twice the jitter of training are near.
    near = 2 * config.number("router_jitter_noise", 0.01)
    routing = read_routing(config, score=Score.softmax_of_near, renormalise=False)
    routing = replace(routing, near=near)
    spec = decoder(sizes, [_layer(config, sizes, routing, i) for i in range(sizes.layers)])
    return replace(
        spec,
        norm=LayerNormSpec("model.norm", sizes.hidden, sizes.eps),
        head_bias="lm_head.bias" if config.flag("lm_head_bias", False) else None,
    )


def _layer(config: ModelFields, sizes: Sizes, routing: Routing, index: int) -> LayerSpec:
    prefix = f"model.layers.{index}"
    bias = config.flag("attention_bias", False)
    window = config.optional_int("sliding_window") or 0
    moe = f"{prefix}.block_sparse_moe"
    parts = experts(
        f"{moe}.experts",
        routing.experts,
        sizes.hidden,
        sizes.intermediate,
        names=("w1", "w3", "w2"),
    )
    before, after = (
        LayerNormSpec(f"{prefix}.{name}", sizes.hidden, sizes.eps)
        for name in ("input_layernorm", "post_attention_layernorm")
    )
    return replace(
        layer(sizes, index, window=window, qkv_bias=bias, out_bias=bias),
        mlp=mixture(moe, sizes.hidden, routing, parts),
        mixer_norm=before,
        mlp_norm=after,
    )
