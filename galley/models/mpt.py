"""MPT: ALiBi in place of positions, norms without biases, q, k and v in one tensor."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.layers.alibi import alibi_slopes
from galley.layers.weight_specs import fuse
from galley.models.config import model_fields
from galley.models.decoder import DecoderSpec, LayerSpec
from galley.models.gpt import attention, decoder, mlp, read_sizes


def mpt(model_info: ModelInfo) -> DecoderSpec:
    config = model_fields(model_info)
    config.require("no_bias", True, default=True)
    config.require("logit_scale", None)
    attends = config.within("attn_config")
    attends.require("attn_type", "multihead_attention", default="multihead_attention")
    attends.require("alibi", True, default=True)
    for key in ("qk_ln", "prefix_lm", "attn_uses_sequence_id"):
        attends.require(key, False, default=False)
    sizes = read_sizes(config, eps_key="layer_norm_epsilon", activation="gelu", tied=True)
    ratio = config.integer("expansion_ratio", 4, least=1)
    sizes = replace(sizes, intermediate=ratio * sizes.hidden)
    slopes = alibi_slopes(sizes.heads, attends.above_zero("alibi_bias_max", 8.0))
    scale = attends.above_zero("softmax_scale", sizes.head_dim**-0.5)
    clip = attends.above_zero("clip_qkv") if attends.has("clip_qkv") else 0.0

    def layer(index: int) -> LayerSpec:
        prefix = f"transformer.blocks.{index}"
        apart = attention(
            sizes,
            f"{prefix}.attn",
            out="out_proj",
            qkv_bias=False,
            out_bias=False,
            slopes=slopes,
        )
        q, k, v = fuse(f"{prefix}.attn.Wqkv", (apart.q, apart.k, apart.v))
        return LayerSpec(
            mixer=replace(apart, q=q, k=k, v=v, scale=scale, clip=clip),
            mlp=mlp(sizes, f"{prefix}.ffn.up_proj", f"{prefix}.ffn.down_proj", bias=False),
            mixer_norm=sizes.norm(f"{prefix}.norm_1", bias=False),
            mlp_norm=sizes.norm(f"{prefix}.norm_2", bias=False),
        )

    norm = sizes.norm("transformer.norm_f", bias=False)
    return decoder(sizes, layer, embedding="transformer.wte", norm=norm)
