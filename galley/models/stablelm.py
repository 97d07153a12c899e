"""StableLM: layer norms, a gated feed-forward block, part of a head rotated."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.layers.layer_norm import PerHeadLayerNormSpec
from galley.layers.mlp import MLPSpec
from galley.layers.weight_specs import Part
from galley.models.config import model_fields, read_rotary
from galley.models.decoder import AnyLayerSpec, DecoderSpec, LayerSpec, ParallelLayerSpec
from galley.models.gpt import Sizes, attention, decoder, read_sizes


def stablelm(model_info: ModelInfo) -> DecoderSpec:
    """Biases on q, k and v, norms of their heads, and parallel blocks by config."""
    config = model_fields(model_info)
    config.require("hidden_act", "silu", default="silu")
    sizes = read_sizes(config, eps_key="layer_norm_eps", activation="silu", grouped=True)
    config = config.with_defaults(partial_rotary_factor=0.25)
    rotary = read_rotary(config, sizes.head_dim, 10000.0, partial=True)
    bias, qk_norm = config.flag("use_qkv_bias", False), config.flag("qk_layernorm", False)
    stacked = config.flag("stacked_head_norms", False)
    parallel = config.flag("use_parallel_residual", False)

    def layer(index: int) -> AnyLayerSpec:
        prefix = f"model.layers.{index}"
        name = f"{prefix}.self_attn"
        mixer = attention(sizes, name, rotary=rotary, qkv_bias=bias, out_bias=False)
        if qk_norm:
            mixer = replace(
                mixer,
                q_norm=_head_norms(sizes, f"{name}.q_layernorm", sizes.heads, stacked),
                k_norm=_head_norms(sizes, f"{name}.k_layernorm", sizes.kv_heads, stacked),
            )
        up, down = (sizes.intermediate, sizes.hidden), (sizes.hidden, sizes.intermediate)
        block = MLPSpec(
            gate=Part(f"{prefix}.mlp.gate_proj", up),
            up=Part(f"{prefix}.mlp.up_proj", up),
            down=Part(f"{prefix}.mlp.down_proj", down),
        )
        norm = sizes.norm(f"{prefix}.input_layernorm")
        if parallel:
            return ParallelLayerSpec(mixer, block, norm)
        return LayerSpec(mixer, block, norm, sizes.norm(f"{prefix}.post_attention_layernorm"))

    return decoder(sizes, layer, norm=sizes.norm("model.norm"))


def _head_norms(sizes: Sizes, name: str, heads: int, stacked: bool) -> PerHeadLayerNormSpec:
    """`stacked`: the weights of all heads are one tensor, as in GGUF files."""
    if stacked:
        weights = [Part(f"{name}.weight", (heads, sizes.head_dim))]
    else:
        weights = [Part(f"{name}.norms.{i}.weight", (sizes.head_dim,)) for i in range(heads)]
    return PerHeadLayerNormSpec(tuple(weights), sizes.head_dim, sizes.eps)
