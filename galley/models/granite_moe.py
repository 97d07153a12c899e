"""Granite-MoE and its variants with a shared expert, with windows and sinks: Granite's multipliers,
and experts in every layer that are stored in one tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.kernels.ops.route import Score
from galley.layers.mlp import MLPSpec
from galley.layers.weight_specs import Part, Stack, fuse
from galley.models.config import ModelFields, model_fields
from galley.models.decoder import DecoderSpec, LayerSpec
from galley.models.granite import with_sinks
from galley.models.llama import attention, decoder, layer, read_sizes
from galley.models.mixture import Experts, experts, gated, mixture, read_routing


def granite_moe(model_info: ModelInfo) -> DecoderSpec:
    """Both: `shared_intermediate_size` is 0 or absent where there is no shared expert."""
    return _granite_moe(model_fields(model_info), "router.layer", granite_experts)


def granite_moe_swa(model_info: ModelInfo) -> DecoderSpec:
    """Sinks, windows and rotary bases as `granite_swa` has them; experts under usual names."""
    config = model_fields(model_info)

    def parts(prefix: str, count: int, hidden: int, intermediate: int) -> Experts:
        return experts(f"{prefix}.experts", count, hidden, intermediate)

    spec = _granite_moe(config, "router", parts)
    layers = with_sinks(config, read_sizes(config), cast(list[LayerSpec], spec.layers))
    return replace(spec, layers=layers)


def _granite_moe(
    config: ModelFields, router: str, parts: Callable[[str, int, int, int], Experts]
) -> DecoderSpec:
    sizes = read_sizes(config)
    bias = config.flag("attention_bias", False)
    routing = read_routing(config, score=Score.softmax_of_chosen)
    shared = config.integer("shared_intermediate_size", 0)

    def one(index: int) -> LayerSpec:
        prefix = f"model.layers.{index}"
        mixer = replace(
            attention(sizes, f"{prefix}.self_attn", qkv_bias=bias, out_bias=bias),
            scale=config.number("attention_multiplier", 1.0),
        )
        moe = mixture(
            f"{prefix}.block_sparse_moe",
            sizes.hidden,
            routing,
            parts(f"{prefix}.block_sparse_moe", routing.experts, sizes.hidden, sizes.intermediate),
            router=router,
            shared=shared_mlp(f"{prefix}.shared_mlp", sizes.hidden, shared) if shared else None,
        )
        residual = config.number("residual_multiplier", 1.0)
        return replace(layer(sizes, index), mixer=mixer, mlp=moe, residual=residual)

    return replace(
        decoder(sizes, [one(i) for i in range(sizes.layers)]),
        embedding_scale=config.number("embedding_multiplier", 1.0),
        logits_scale=1 / config.number("logits_scaling", 1.0),
    )


def granite_experts(prefix: str, count: int, hidden: int, intermediate: int) -> Experts:
    """Experts in the tensors input_linear (gate, then up) and output_linear."""
    i, name = intermediate, f"{prefix}.input_linear.weight"
    both = (count, 2 * i, hidden)
    down = Stack(f"{prefix}.output_linear.weight", (count, hidden, i), (0, hidden, 1))
    return Experts(
        Part(f"{prefix}.experts.{{}}.gate_proj", (i, hidden), stack=Stack(name, both, (0, i, 1))),
        Part(f"{prefix}.experts.{{}}.up_proj", (i, hidden), stack=Stack(name, both, (i, 2 * i, 1))),
        Part(f"{prefix}.experts.{{}}.down_proj", (hidden, i), stack=down),
    )


def shared_mlp(prefix: str, hidden: int, intermediate: int) -> MLPSpec:
    """The expert for all tokens, with its gate and up in one tensor."""
    apart = gated(prefix, hidden, intermediate)
    gate, up = fuse(f"{prefix}.input_linear", (apart.gate, apart.up))
    down = Part(f"{prefix}.output_linear", (hidden, intermediate))
    return replace(apart, gate=gate, up=up, down=down)
