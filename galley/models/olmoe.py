"""OLMoE: q and k are normalised over all heads together; experts in every layer."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.layers.norm import RMSNormSpec
from galley.models.config import model_fields
from galley.models.decoder import DecoderSpec, LayerSpec
from galley.models.llama import attention, decoder, layer, read_sizes
from galley.models.mixture import experts, mixture, read_routing


def olmoe(model_info: ModelInfo) -> DecoderSpec:
    config = model_fields(model_info)
    config.require("clip_qkv", None)
    sizes = read_sizes(config, eps=1e-5)
    bias = config.flag("attention_bias", False)
    routing = read_routing(config, renormalise=config.flag("norm_topk_prob", False))

    def one(index: int) -> LayerSpec:
        prefix = f"model.layers.{index}"
        mixer = attention(sizes, f"{prefix}.self_attn", qkv_bias=bias, out_bias=bias)
        q, k = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
        mixer = replace(
            mixer,
            q_norm=RMSNormSpec(f"{prefix}.self_attn.q_norm", q, sizes.eps),
            k_norm=RMSNormSpec(f"{prefix}.self_attn.k_norm", k, sizes.eps),
        )
        parts = experts(f"{prefix}.mlp.experts", routing.experts, sizes.hidden, sizes.intermediate)
        moe = mixture(f"{prefix}.mlp", sizes.hidden, routing, parts)
        return replace(layer(sizes, index), mixer=mixer, mlp=moe)

    return decoder(sizes, [one(i) for i in range(sizes.layers)])
