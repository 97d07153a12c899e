"""OPT: learned positions from row 2 on."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.layers.layer_norm import LayerNormSpec
from galley.layers.positions import LearnedPositionsSpec
from galley.layers.questions import Part
from galley.models.config import model_fields
from galley.models.decoder import DecoderSpec, LayerSpec
from galley.models.gpt import attention, decoder, mlp, read_sizes

#: Rows of the position table before that of position 0.
FIRST_POSITION = 2


def opt(model_info: ModelInfo) -> DecoderSpec:
    """Except OPT-350m, whose norms come after the blocks."""
    config = model_fields(model_info)
    config.require("do_layer_norm_before", True, default=True)
    config.require("_remove_final_layer_norm", False, default=False)
    sizes = read_sizes(
        config,
        eps_key="layer_norm_eps",
        activation_key="activation_function",
        activation="relu",
        tied=True,
    )
    config.require("word_embed_proj_dim", sizes.hidden, default=sizes.hidden)
    sizes = replace(sizes, intermediate=config.integer("ffn_dim", least=1))
    bias = config.flag("enable_bias", True)
    affine = config.flag("layer_norm_elementwise_affine", True)
    top = "model.decoder"

    def layer(index: int) -> LayerSpec:
        prefix = f"{top}.layers.{index}"
        return LayerSpec(
            mixer=attention(
                sizes, f"{prefix}.self_attn", out="out_proj", qkv_bias=bias, out_bias=bias
            ),
            mlp=mlp(sizes, f"{prefix}.fc1", f"{prefix}.fc2", bias=bias),
            mixer_norm=norm(f"{prefix}.self_attn_layer_norm"),
            mlp_norm=norm(f"{prefix}.final_layer_norm"),
        )

    def norm(name: str) -> LayerNormSpec:
        return LayerNormSpec(name if affine else None, sizes.hidden, sizes.eps)

    positions = config.integer("max_position_embeddings", least=1) + FIRST_POSITION
    table = Part(f"{top}.embed_positions", (positions, sizes.hidden))
    spec = decoder(
        sizes, layer, embedding=f"{top}.embed_tokens", norm=norm(f"{top}.final_layer_norm")
    )
    return replace(spec, positions=LearnedPositionsSpec(table, FIRST_POSITION))
