"""GPT-J: neighbours in part of a head rotated, one norm for both parallel blocks, a biased head."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.models.config import model_fields, read_rotary
from galley.models.decoder import DecoderSpec, ParallelLayerSpec
from galley.models.gpt import attention, decoder, mlp, read_sizes


def gptj(model_info: ModelInfo) -> DecoderSpec:
    config = model_fields(model_info)
    sizes = read_sizes(
        config,
        eps_key="layer_norm_epsilon",
        activation_key="activation_function",
        activation="gelu_new",
    )
    dim = config.integer("rotary_dim", sizes.head_dim, least=2, most=sizes.head_dim)
    config = config.with_defaults(partial_rotary_factor=dim / sizes.head_dim)
    rotary = replace(read_rotary(config, sizes.head_dim, 10000.0, partial=True), interleaved=True)

    def layer(index: int) -> ParallelLayerSpec:
        prefix = f"transformer.h.{index}"
        return ParallelLayerSpec(
            mixer=attention(
                sizes,
                f"{prefix}.attn",
                out="out_proj",
                rotary=rotary,
                qkv_bias=False,
                out_bias=False,
            ),
            mlp=mlp(sizes, f"{prefix}.mlp.fc_in", f"{prefix}.mlp.fc_out"),
            norm=sizes.norm(f"{prefix}.ln_1"),
        )

    spec = decoder(sizes, layer, embedding="transformer.wte", norm=sizes.norm("transformer.ln_f"))
    return replace(spec, head_bias="lm_head.bias")
