"""Arcee Trinity (AFMoE): norms around each block, gated attention, experts behind dense layers.

Layers with a window rotate their heads; the others have no positions.
"""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.layers.moe import MoESpec
from galley.layers.norm import RMSNormSpec
from galley.layers.weight_specs import Part
from galley.models.config import (
    ModelFields,
    attention_kinds,
    every_nth_full,
    model_fields,
    window_of,
)
from galley.models.decoder import DecoderSpec, LayerSpec
from galley.models.llama import Sizes, attention, decoder, mlp, read_sizes
from galley.models.mixture import deepseek_mixture, deepseek_routing


def afmoe(model_info: ModelInfo) -> DecoderSpec:
    config = model_fields(model_info).with_defaults(
        routed_scaling_factor=model_info.hf_config.get("route_scale"), norm_topk_prob=True
    )
    sizes = read_sizes(config, eps=1e-5)
    every = config.integer("global_attn_every_n_layers", 4, least=1)
    kinds = attention_kinds(config, sizes.layers, every_nth_full(every))
    window, dense = window_of(config, kinds), config.integer("num_dense_layers", 1)

    def one(index: int) -> LayerSpec:
        prefix, slides = f"model.layers.{index}", kinds[index] == "sliding_attention"
        mixer = attention(
            sizes, f"{prefix}.self_attn", window=window if slides else 0, qk_norm=True
        )
        gate = Part(f"{prefix}.self_attn.gate_proj", (mixer.q.num_rows, sizes.hidden))
        is_dense = index < dense

        def norm(name: str) -> RMSNormSpec:
            return RMSNormSpec(f"{prefix}.{name}", sizes.hidden, sizes.eps)

        return LayerSpec(
            mixer=replace(mixer, gate=gate, rotary=mixer.rotary if slides else None),
            mlp=mlp(sizes, f"{prefix}.mlp") if is_dense else _mixture(config, sizes, prefix),
            mixer_norm=norm("input_layernorm"),
            mixer_out_norm=norm("post_attention_layernorm"),
            mlp_norm=norm("pre_mlp_layernorm"),
            mlp_out_norm=norm("post_mlp_layernorm"),
        )

    model = decoder(sizes, [one(i) for i in range(sizes.layers)])
    scale = sizes.hidden**0.5 if config.flag("mup_enabled", False) else 1.0
    return replace(model, embedding_scale=scale)


def _mixture(config: ModelFields, sizes: Sizes, prefix: str) -> MoESpec:
    routing = deepseek_routing(config)
    moe = deepseek_mixture(config, f"{prefix}.mlp", sizes.hidden, routing)
    return replace(
        moe,
        router=Part(f"{prefix}.mlp.router.gate", (routing.experts, sizes.hidden)),
        choice_bias=Part(f"{prefix}.mlp.expert_bias", (routing.experts,)),
    )
