"""Persimmon: q, k and v in one tensor by head, norms of heads, a squared-relu block."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.layers.layer_norm import LayerNormSpec
from galley.layers.weight_specs import fuse_runs
from galley.models.config import model_fields, read_rotary
from galley.models.decoder import DecoderSpec, LayerSpec
from galley.models.gpt import attention, decoder, mlp, read_sizes


def persimmon(model_info: ModelInfo) -> DecoderSpec:
    """Half of a head is rotated, unless the config says otherwise."""
    config = model_fields(model_info).with_defaults(partial_rotary_factor=0.5)
    sizes = read_sizes(config, eps_key="layer_norm_eps", activation="relu2")
    rotary = read_rotary(config, sizes.head_dim, 25000.0, partial=True)
    qk_norm = config.flag("qk_layernorm", True)

    def layer(index: int) -> LayerSpec:
        prefix = f"model.layers.{index}"
        name = f"{prefix}.self_attn"
        apart = attention(sizes, name, out="dense", rotary=rotary)
        q, k, v = fuse_runs(f"{name}.query_key_value", (apart.q, apart.k, apart.v), sizes.heads)
        norms = [LayerNormSpec(f"{name}.{x}_layernorm", sizes.head_dim, sizes.eps) for x in "qk"]
        mixer = replace(apart, q=q, k=k, v=v)
        if qk_norm:
            mixer = replace(mixer, q_norm=norms[0], k_norm=norms[1])
        return LayerSpec(
            mixer,
            mlp(sizes, f"{prefix}.mlp.dense_h_to_4h", f"{prefix}.mlp.dense_4h_to_h"),
            sizes.norm(f"{prefix}.input_layernorm"),
            sizes.norm(f"{prefix}.post_attention_layernorm"),
        )

    return decoder(sizes, layer, norm=sizes.norm("model.final_layernorm"))
