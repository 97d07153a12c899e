"""The text model of CLIP: tokens see those before them, and the last one's state is the text's."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.layers.positions import LearnedPositionsSpec
from galley.layers.weight_specs import Part
from galley.models.config import model_fields
from galley.models.decoder import DecoderSpec, LayerSpec
from galley.models.gpt import attention, decoder, mlp, read_sizes


def clip_text(model_info: ModelInfo) -> DecoderSpec:
    """The embedding stands in for a head; no request yields logits."""
    config = model_fields(model_info)
    quick = config.text("hidden_act", "quick_gelu") == "quick_gelu"
    config = config.replaced(tie_word_embeddings=True)
    if quick:
        config = config.replaced(hidden_act="gelu")
    sizes = read_sizes(config, eps_key="layer_norm_eps")

    def layer(index: int) -> LayerSpec:
        prefix = f"encoder.layers.{index}"
        block = mlp(sizes, f"{prefix}.mlp.fc1", f"{prefix}.mlp.fc2")
        return LayerSpec(
            mixer=attention(sizes, f"{prefix}.self_attn", out="out_proj"),
            mlp=replace(block, activation="quick_gelu") if quick else block,
            mixer_norm=sizes.norm(f"{prefix}.layer_norm1"),
            mlp_norm=sizes.norm(f"{prefix}.layer_norm2"),
        )

    rows = config.integer("max_position_embeddings", 77, least=1)
    spec = decoder(
        sizes, layer, embedding="embeddings.token_embedding", norm=sizes.norm("final_layer_norm")
    )
    return replace(
        spec,
        positions=LearnedPositionsSpec(Part("embeddings.position_embedding", (rows, sizes.hidden))),
        ignored=(*spec.ignored, "embeddings.position_ids"),
    )
