"""GPT-BigCode (SantaCoder, StarCoder): GPT-2 with one KV head for all queries."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.layers.positions import LearnedPositionsSpec
from galley.layers.weight_specs import Part, fuse, fuse_runs
from galley.models.config import model_fields
from galley.models.decoder import DecoderSpec, LayerSpec
from galley.models.gpt import attention, decoder, mlp, read_sizes


def gpt_bigcode(model_info: ModelInfo) -> DecoderSpec:
    config = model_fields(model_info)
    config.require("add_cross_attention", False, default=False)
    sizes = read_sizes(
        config,
        eps_key="layer_norm_epsilon",
        activation_key="activation_function",
        activation="gelu_pytorch_tanh",
        tied=True,
    )
    one = config.flag("multi_query", True)
    sizes = replace(sizes, kv_heads=1 if one else sizes.heads)
    scale = sizes.head_dim**-0.5 if config.flag("scale_attn_weights", True) else 1.0

    def layer(index: int) -> LayerSpec:
        prefix = f"transformer.h.{index}"
        apart = attention(sizes, f"{prefix}.attn", out="c_proj")
        parts, name = (apart.q, apart.k, apart.v), f"{prefix}.attn.c_attn"
        q, k, v = fuse(name, parts) if one else fuse_runs(name, parts, sizes.heads)
        return LayerSpec(
            mixer=replace(apart, q=q, k=k, v=v, scale=scale),
            mlp=mlp(sizes, f"{prefix}.mlp.c_fc", f"{prefix}.mlp.c_proj"),
            mixer_norm=sizes.norm(f"{prefix}.ln_1"),
            mlp_norm=sizes.norm(f"{prefix}.ln_2"),
        )

    positions = config.integer("max_position_embeddings", least=1)
    table = Part("transformer.wpe", (positions, sizes.hidden))
    spec = decoder(sizes, layer, embedding="transformer.wte", norm=sizes.norm("transformer.ln_f"))
    return replace(spec, positions=LearnedPositionsSpec(table))
