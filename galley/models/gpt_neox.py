"""GPT-NeoX and Pythia: q, k and v in one tensor by head, part of a head rotated."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.layers.weight_specs import fuse_runs
from galley.models.config import model_fields, read_rotary
from galley.models.decoder import AnyLayerSpec, DecoderSpec, LayerSpec, ParallelLayerSpec
from galley.models.gpt import attention, decoder, mlp, read_sizes


def gpt_neox(model_info: ModelInfo) -> DecoderSpec:
    config = model_fields(model_info)
    sizes = read_sizes(config, eps_key="layer_norm_eps", activation="gelu")
    config = config.with_defaults(partial_rotary_factor=config.number("rotary_pct", 0.25))
    theta = config.number("rotary_emb_base", 10000.0)
    rotary = read_rotary(config, sizes.head_dim, theta, partial=True)
    bias, parallel = config.flag("attention_bias", True), config.flag("use_parallel_residual", True)

    def layer(index: int) -> AnyLayerSpec:
        prefix = f"gpt_neox.layers.{index}"
        name = f"{prefix}.attention"
        apart = attention(sizes, name, out="dense", rotary=rotary, qkv_bias=bias, out_bias=bias)
        q, k, v = fuse_runs(f"{name}.query_key_value", (apart.q, apart.k, apart.v), sizes.heads)
        mixer = replace(apart, q=q, k=k, v=v)
        block = mlp(sizes, f"{prefix}.mlp.dense_h_to_4h", f"{prefix}.mlp.dense_4h_to_h")
        norms = (
            sizes.norm(f"{prefix}.input_layernorm"),
            sizes.norm(f"{prefix}.post_attention_layernorm"),
        )
        return (ParallelLayerSpec if parallel else LayerSpec)(mixer, block, *norms)

    return decoder(
        sizes, layer, embedding="gpt_neox.embed_in", norm=sizes.norm("gpt_neox.final_layer_norm")
    )
