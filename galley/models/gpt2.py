"""GPT-2: learned positions, q, k and v in one tensor, matrices stored transposed."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.layers.positions import LearnedPositionsSpec
from galley.layers.weight_specs import Part, fuse
from galley.models.config import model_fields
from galley.models.decoder import DecoderSpec, LayerSpec
from galley.models.gpt import Sizes, attention, decoder, mlp, read_sizes


def gpt2(model_info: ModelInfo) -> DecoderSpec:
    config = model_fields(model_info)
    config.require("add_cross_attention", False, default=False)
    sizes = read_sizes(
        config,
        eps_key="layer_norm_epsilon",
        activation_key="activation_function",
        activation="gelu_new",
        tied=True,
    )
    scale = sizes.head_dim**-0.5 if config.flag("scale_attn_weights", True) else 1.0
    by_layer = config.flag("scale_attn_by_inverse_layer_idx", False)
    # Quantised matrices, and those of GGUF files, are [outputs, inputs].
    transposed = config.flag("transposed_weights", model_info.quantization is None)

    def layer(index: int) -> LayerSpec:
        return _layer(sizes, index, scale / (index + 1) if by_layer else scale, transposed)

    positions = config.integer("max_position_embeddings", least=1)
    spec = decoder(sizes, layer, embedding="transformer.wte", norm=sizes.norm("transformer.ln_f"))
    return replace(
        spec, positions=LearnedPositionsSpec(Part("transformer.wpe", (positions, sizes.hidden)))
    )


def _layer(sizes: Sizes, index: int, scale: float, transposed: bool) -> LayerSpec:
    prefix = f"transformer.h.{index}"
    apart = attention(sizes, f"{prefix}.attn", out="c_proj")
    q, k, v = fuse(f"{prefix}.attn.c_attn", (apart.q, apart.k, apart.v), transposed=transposed)
    out = replace(apart.out, transposed=transposed)
    block = mlp(sizes, f"{prefix}.mlp.c_fc", f"{prefix}.mlp.c_proj")
    up, down = (replace(part, transposed=transposed) for part in (block.up, block.down))
    return LayerSpec(
        mixer=replace(apart, q=q, k=k, v=v, out=out, scale=scale),
        mlp=replace(block, up=up, down=down),
        mixer_norm=sizes.norm(f"{prefix}.ln_1"),
        mlp_norm=sizes.norm(f"{prefix}.ln_2"),
    )
