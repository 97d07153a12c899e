"""ERNIE 4.5 MoE: interleaved rotary embedding; a bias in the choice of experts."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.layers.weight_specs import Part
from galley.models.config import model_fields
from galley.models.decoder import DecoderSpec
from galley.models.llama import decoder, layer, read_sizes
from galley.models.mixture import experts, gated, mixture, read_routing


def ernie_moe(model_info: ModelInfo) -> DecoderSpec:
    config = model_fields(model_info).with_defaults(tie_word_embeddings=True)
    config.require("use_bias", False, default=False)
    sizes = read_sizes(config, theta=500000.0, eps=1e-5)
    sizes = replace(sizes, rotary=replace(sizes.rotary, interleaved=True))
    routing = read_routing(config)
    intermediate = config.integer("moe_intermediate_size", least=1)
    shared = config.integer("moe_num_shared_experts", 2) * intermediate
    first, last = config.integer("moe_layer_start_index", 1), sizes.layers - 1
    if config.values.get("moe_layer_end_index") not in (-1, None):
        last = config.integer("moe_layer_end_index")
    interval = config.integer("moe_layer_interval", 1, least=1)
    layers = []
    for i in range(sizes.layers):
        spec, prefix = layer(sizes, i), f"model.layers.{i}.mlp"
        if first <= i <= last and (i + 1) % interval == 0:
            bias = Part(f"{prefix}.moe_statics.e_score_correction_bias", (1, routing.experts))
            moe = mixture(
                prefix,
                sizes.hidden,
                routing,
                experts(f"{prefix}.experts", routing.experts, sizes.hidden, intermediate),
                choice_bias=bias,
                shared=gated(f"{prefix}.shared_experts", sizes.hidden, shared) if shared else None,
            )
            spec = replace(spec, mlp=moe)
        layers.append(spec)
    model = decoder(sizes, layers)
    return replace(model, ignored=(*model.ignored, "model.mtp_"))
