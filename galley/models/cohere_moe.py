"""Command A+ (Cohere 2 with experts): both blocks of a layer read one norm; layers with a window
are rotated, as are the dense ones before the experts; experts and shared expert may be averaged."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from msgspec.structs import replace

from galley.config import ModelInfo
from galley.kernels.ops import Ops, Value
from galley.kernels.ops.route import Score
from galley.layers.context import BuildContext
from galley.layers.moe import MoESpec
from galley.layers.norm import NormSpec, RMSNormSpec
from galley.layers.scale import Multiplier
from galley.models.cohere import cohere_attention, cohere_fields, cohere_norm, cohere_sizes
from galley.models.config import LayerKind, ModelFields, attention_kinds, window_of
from galley.models.decoder import DecoderSpec, FeedForwardSpec, ParallelLayerSpec
from galley.models.llama import Sizes, decoder
from galley.models.mixture import experts, gated, is_dense, mixture, read_routing


class AverageSpec(msgspec.Struct, frozen=True):
    """Half of the sum of experts and shared expert."""

    block: MoESpec

    def build(self, context: BuildContext) -> Average:
        return Average(self, context)


class Average:
    """x [T, hidden] → [T, hidden]."""

    def __init__(self, spec: AverageSpec, context: BuildContext) -> None:
        self.block = spec.block.build(context)
        self._half = Multiplier(context.source, 0.5)

    def __call__(self, ops: Ops, x: Value) -> Value:
        return self._half(ops, self.block(ops, x))


def cohere2_moe(model_info: ModelInfo) -> DecoderSpec:
    config = cohere_fields(model_info)
    sizes = cohere_sizes(config)
    kinds = attention_kinds(config, sizes.layers, _default_kind(config))
    window = window_of(config, kinds)
    prefix_rotated = config.integer("prefix_dense_sliding_window_pattern", 1, least=1) == 1

    def norm(name: str) -> NormSpec:
        if config.has("rms_norm_eps"):
            return RMSNormSpec(name, sizes.hidden, config.number("rms_norm_eps"))
        return cohere_norm(sizes, name)

    def one(index: int) -> ParallelLayerSpec:
        prefix, dense = f"model.layers.{index}", is_dense(config, index)
        mixer = cohere_attention(config, sizes, index)
        if kinds[index] == "sliding_attention":
            mixer = replace(mixer, window=window)
        elif not (dense and prefix_rotated):
            mixer = replace(mixer, rotary=None)
        block: FeedForwardSpec = _experts(config, sizes, f"{prefix}.mlp")
        if dense:
            size = config.integer("prefix_dense_intermediate_size", sizes.intermediate, least=1)
            block = gated(f"{prefix}.mlp", sizes.hidden, size)
        return ParallelLayerSpec(mixer=mixer, mlp=block, norm=norm(f"{prefix}.input_layernorm"))

    return replace(
        decoder(sizes, [one(i) for i in range(sizes.layers)]),
        norm=norm("model.norm"),
        logits_scale=config.above_zero("logit_scale"),
    )


def _default_kind(config: ModelFields) -> Callable[[int], LayerKind]:
    """Dense layers and those with experts each have a pattern of their own."""
    dense = config.integer("first_k_dense_replace", 0)
    first = config.integer("prefix_dense_sliding_window_pattern", 1, least=1)
    others = config.integer("sliding_window_pattern", 4, least=1)

    def kind(index: int) -> LayerKind:
        number, every = (index, first) if index < dense else (index - dense, others)
        return "sliding_attention" if (number + 1) % every else "full_attention"

    return kind


def _experts(config: ModelFields, sizes: Sizes, prefix: str) -> FeedForwardSpec:
    config.require("expert_selection_fn", "softmax", "sigmoid", default="softmax")
    by_sigmoid = config.text("expert_selection_fn", "softmax") == "sigmoid"
    routing = read_routing(
        config,
        score=Score.sigmoid if by_sigmoid else Score.softmax_of_chosen,
        renormalise=by_sigmoid and config.flag("norm_topk_prob", True),
    )
    shared = config.integer("num_shared_experts", 0) * sizes.intermediate
    parts = experts(f"{prefix}.experts", routing.experts, sizes.hidden, sizes.intermediate)
    moe = mixture(
        prefix,
        sizes.hidden,
        routing,
        parts,
        shared=gated(f"{prefix}.shared_experts", sizes.hidden, shared) if shared else None,
    )
    key = "shared_expert_combination_strategy"
    config.require(key, "average", "sum", default="average")
    averages = shared and config.text(key, "average") == "average"
    return AverageSpec(moe) if averages else moe
