"""Phi-1, Phi-1.5 and Phi-2: part of a head rotated, one norm for both parallel blocks."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.layers.layer_norm import LayerNormSpec
from galley.layers.weight_specs import fuse
from galley.models.config import model_fields, read_rotary
from galley.models.decoder import DecoderSpec, ParallelLayerSpec
from galley.models.gpt import attention, decoder, mlp, read_sizes


def phi(model_info: ModelInfo) -> DecoderSpec:
    config = model_fields(model_info)
    sizes = read_sizes(config, eps_key="layer_norm_eps", activation="gelu_new", grouped=True)
    config = config.with_defaults(partial_rotary_factor=0.5)
    rotary = read_rotary(config, sizes.head_dim, 10000.0, partial=True)
    fused = config.flag("fused_qkv", False)  # in GGUF files
    qk_norm = config.flag("qk_layernorm", False)

    def layer(index: int) -> ParallelLayerSpec:
        prefix = f"model.layers.{index}"
        name = f"{prefix}.self_attn"
        mixer = attention(sizes, name, out="dense", rotary=rotary)
        if fused:
            q, k, v = fuse(f"{name}.qkv_proj", (mixer.q, mixer.k, mixer.v))
            mixer = replace(mixer, q=q, k=k, v=v)
        if qk_norm:
            q_norm, k_norm = (
                LayerNormSpec(f"{name}.{part}_layernorm", sizes.head_dim, sizes.eps)
                for part in "qk"
            )
            mixer = replace(mixer, q_norm=q_norm, k_norm=k_norm)
        return ParallelLayerSpec(
            mixer=mixer,
            mlp=mlp(sizes, f"{prefix}.mlp.fc1", f"{prefix}.mlp.fc2"),
            norm=sizes.norm(f"{prefix}.input_layernorm"),
        )

    spec = decoder(sizes, layer, norm=sizes.norm("model.final_layernorm"))
    return replace(spec, head_bias="lm_head.bias")
