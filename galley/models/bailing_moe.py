"""Ling 2.0 and Ring 2.0 (BailingMoeV2): DeepSeek's mixtures in layers of ordinary attention, under
other names."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.layers.norm import HeadNormSpec
from galley.layers.weight_specs import Part
from galley.models.config import ModelFields, model_fields
from galley.models.decoder import DecoderSpec, LayerSpec
from galley.models.llama import Sizes, decoder, layer, read_sizes, with_attention, with_fused_qkv
from galley.models.mixture import deepseek_mixture, deepseek_routing, is_dense


def bailing_moe_v2(model_info: ModelInfo) -> DecoderSpec:
    """Heads are rotated in part; layers that predict further tokens are not used."""
    config = model_fields(model_info).with_defaults(partial_rotary_factor=0.5)
    config.require("score_function", "sigmoid", default="sigmoid")
    config.require("norm_head", False, default=False)
    sizes = read_sizes(config, partial_rotary=True)
    model = decoder(sizes, [_layer(config, sizes, i) for i in range(sizes.layers)])
    further = range(sizes.layers, sizes.layers + config.integer("num_nextn_predict_layers", 0))
    return replace(
        model,
        embedding=Part("model.word_embeddings", (sizes.vocab, sizes.hidden)),
        ignored=(*model.ignored, *(f"model.layers.{i}." for i in further)),
    )


def _layer(config: ModelFields, sizes: Sizes, index: int) -> LayerSpec:
    prefix, d = f"model.layers.{index}", sizes.head_dim
    name = f"{prefix}.attention"
    one = layer(sizes, index, qkv_bias=config.flag("use_qkv_bias", False))
    one = with_fused_qkv(one, f"{name}.query_key_value")
    out_bias = config.flag("use_bias", False)
    out = Part(f"{name}.dense", (sizes.hidden, sizes.heads * d))
    one = with_attention(one, out=out, out_bias=out_bias)
    if config.flag("use_qk_norm", True):
        q_norm, k_norm = (
            HeadNormSpec(f"{name}.{part}_layernorm", d, sizes.eps) for part in ("query", "key")
        )
        one = with_attention(one, q_norm=q_norm, k_norm=k_norm)
    if is_dense(config, index):
        return one
    routing = deepseek_routing(config)
    moe = deepseek_mixture(config, f"{prefix}.mlp", sizes.hidden, routing)
    bias = Part(f"{prefix}.mlp.gate.expert_bias", (routing.experts,))
    return replace(one, mlp=replace(moe, choice_bias=bias))
