"""The feed-forward block of Gemma 4 with experts: an MLP and experts side by side.

    norm_1(mlp(norm(h))) + norm_2(experts(norm_2(h)))

The router reads another norm of h; an expert's weight has a learned factor.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec
import numpy as np
from msgspec.structs import replace

from galley.kernels.ops import Ops, Value
from galley.kernels.ops.experts import Activation
from galley.layers.context import BuildContext
from galley.layers.moe import MoESpec
from galley.layers.norm import NormSpec, RMSNormSpec
from galley.layers.weight_specs import Part, Vector
from galley.models.config import ModelFields
from galley.models.decoder import FeedForwardSpec, LayerSpec
from galley.models.llama import Sizes
from galley.models.mixture import experts, mixture, read_routing

L = TypeVar("L", bound=LayerSpec)


class Gemma4ExpertsSpec(msgspec.Struct, frozen=True):
    """The block.

    Attributes:
        mlp_norm, mlp_out_norm, experts_norm, experts_out_norm: before and after the MLP and the
            experts.
        router_norm: of what the router reads; without a weight.
        router_scale: the tensor [hidden] that it is multiplied with, beside hidden ** -0.5.
    """

    mlp: FeedForwardSpec
    experts: MoESpec
    mlp_norm: NormSpec
    mlp_out_norm: NormSpec
    experts_norm: NormSpec
    experts_out_norm: NormSpec
    router_norm: NormSpec
    router_scale: Part

    def build(self, context: BuildContext) -> Gemma4Experts:
        return Gemma4Experts(self, context)


class Gemma4Experts:
    """h [T, hidden] → [T, hidden]."""

    def __init__(self, spec: Gemma4ExpertsSpec, context: BuildContext) -> None:
        source = context.source
        self.mlp, self.experts = spec.mlp.build(context), spec.experts.build(context)
        self.mlp_norm, self.mlp_out_norm = (
            norm.build(source) for norm in (spec.mlp_norm, spec.mlp_out_norm)
        )
        self.experts_norm, self.experts_out_norm = (
            norm.build(source) for norm in (spec.experts_norm, spec.experts_out_norm)
        )
        self.router_norm = spec.router_norm.build(source)
        hidden = spec.router_norm.size
        scale = np.asarray(source.vector(Vector((spec.router_scale,))), np.float32)
        self.router_scale = source.constant((hidden,), lambda: scale * np.float32(hidden**-0.5))

    def __call__(self, ops: Ops, x: Value) -> Value:
        by = ops.scale(self.router_norm(ops, x), self.router_scale)
        y = self.mlp_out_norm(ops, self.mlp(ops, self.mlp_norm(ops, x)))
        routed = self.experts(ops, self.experts_norm(ops, x), by)
        return ops.add(y, self.experts_out_norm(ops, routed))


def with_experts(config: ModelFields, sizes: Sizes, layer: L, index: int) -> L:
    """The layer with experts beside its MLP."""
    prefix, hidden = f"model.layers.{index}", sizes.hidden
    routing = read_routing(config)
    intermediate = config.integer("moe_intermediate_size", least=1)
    moe = mixture(
        f"{prefix}.router",
        hidden,
        routing,
        experts(f"{prefix}.experts", routing.experts, hidden, intermediate),
        router="proj",
        activation=Activation.gelu,
        expert_scales=Part(f"{prefix}.router.per_expert_scale", (routing.experts,)),
    )

    def norm(name: str | None) -> RMSNormSpec:
        return RMSNormSpec(None if name is None else f"{prefix}.{name}", hidden, sizes.eps)

    assert layer.mlp is not None
    assert layer.mlp_norm is not None
    block = Gemma4ExpertsSpec(
        mlp=layer.mlp,
        experts=moe,
        mlp_norm=layer.mlp_norm,
        mlp_out_norm=norm("post_feedforward_layernorm_1"),
        experts_norm=norm("pre_feedforward_layernorm_2"),
        experts_out_norm=norm("post_feedforward_layernorm_2"),
        router_norm=norm(None),
        router_scale=Part(f"{prefix}.router.scale", (hidden,)),
    )
    return replace(layer, mlp=block, mlp_norm=None)
