"""MPNet: BERT whose scores have a bias by distance, the same in all layers."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.layers.distance_bias import DistanceBiasSpec
from galley.layers.weight_specs import Part
from galley.models.bert import EPS, attention, encoder
from galley.models.config import model_fields
from galley.models.decoder import DecoderSpec, PostNormLayerSpec
from galley.models.gpt import mlp, read_sizes

#: Distance from which on all tokens of a side are in one bucket; no config names another.
MOST = 128
#: Row of position 0: behind that of the padding token, whose id is 1.
FIRST = 2


def mpnet(model_info: ModelInfo) -> DecoderSpec:
    """There are no token types."""
    config = model_fields(model_info).with_defaults(layer_norm_eps=EPS)
    config.require("pad_token_id", FIRST - 1, default=FIRST - 1)
    sizes = read_sizes(config, eps_key="layer_norm_eps", activation="gelu", tied=True)
    buckets = config.integer("relative_attention_num_buckets", 32, least=4, most=2 * MOST)
    table = Part("encoder.relative_attention_bias.weight", (buckets, sizes.heads))

    def layer(index: int) -> PostNormLayerSpec:
        prefix = f"encoder.layer.{index}"
        usual = attention(sizes, *(f"{prefix}.attention.attn.{name}" for name in "qkvo"))
        return PostNormLayerSpec(
            mixer=replace(usual, biases=DistanceBiasSpec(table, MOST)),
            mlp=mlp(sizes, f"{prefix}.intermediate.dense", f"{prefix}.output.dense"),
            norm=sizes.norm(f"{prefix}.attention.LayerNorm"),
            mlp_norm=sizes.norm(f"{prefix}.output.LayerNorm"),
        )

    return encoder(config, sizes, [layer(i) for i in range(sizes.layers)], FIRST)
