"""ALBERT: BERT whose layers share the weights of a few."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.layers.weight_specs import Part
from galley.models.bert import EPS, attention, encoder, projected, with_segments
from galley.models.config import model_fields
from galley.models.decoder import DecoderSpec, PostNormLayerSpec
from galley.models.gpt import mlp, read_sizes


def albert(model_info: ModelInfo) -> DecoderSpec:
    """Consecutive layers are of one group; a group is several layers that all of them run."""
    config = model_fields(model_info).with_defaults(layer_norm_eps=EPS)
    config.require("position_embedding_type", "absolute", default="absolute")
    sizes = read_sizes(config, eps_key="layer_norm_eps", activation="gelu_new", tied=True)
    groups = config.integer("num_hidden_groups", 1, least=1, most=sizes.layers)
    inner = config.integer("inner_group_num", 1, least=1, most=sizes.layers)

    def layer(group: int, index: int) -> PostNormLayerSpec:
        prefix = f"encoder.albert_layer_groups.{group}.albert_layers.{index}"
        names = ("query", "key", "value", "dense")
        return PostNormLayerSpec(
            mixer=attention(sizes, *(f"{prefix}.attention.{name}" for name in names)),
            mlp=mlp(sizes, f"{prefix}.ffn", f"{prefix}.ffn_output"),
            norm=sizes.norm(f"{prefix}.attention.LayerNorm"),
            mlp_norm=sizes.norm(f"{prefix}.full_layer_layer_norm"),
        )

    layers = [
        layer(number * groups // sizes.layers, index)
        for number in range(sizes.layers)
        for index in range(inner)
    ]
    size = config.integer("embedding_size", 128, least=1)
    project = Part("encoder.embedding_hidden_mapping_in", (sizes.hidden, size))
    spec = encoder(config, sizes, layers, project=project)
    # The projection is there for embeddings of any size.
    spec = replace(projected(spec, project), ignored=(*spec.ignored, "predictions.", "sop_"))
    return with_segments(model_info, spec)
