"""Mixture of experts: a router, the experts that each token chooses, and experts for all tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from galley.kernels.adapters import AdapterSite
from galley.kernels.ops import Ops, Value, Weight
from galley.kernels.ops.experts import Activation, ExpertWeights
from galley.kernels.ops.gated_activation import GATE_UP_RUN
from galley.kernels.ops.route import Routing
from galley.layers.context import BuildContext
from galley.layers.linear import Linear
from galley.layers.sites import Sites
from galley.layers.weight_specs import Matrix, Part, Vector


class SharedExpert(Protocol):
    """x [T, hidden] → [T, hidden]"""

    def __call__(self, ops: Ops, x: Value) -> Value: ...


class SharedExpertSpec(Protocol):
    """Sizes and tensors of a shared expert (`layers.mlp.MLPSpec`, …)."""

    def build(self, context: BuildContext) -> SharedExpert: ...


class MoESpec(msgspec.Struct, frozen=True):
    """A mixture of MLPs.

    Attributes:
        router: [experts, hidden], in float32.
        routing: how its logits choose experts.
        gate, up, down: projections of an expert, whose number replaces "{}" in their names; gate
            None = experts without gates.
        router_bias: [experts], added to the logits.
        choice_bias: [experts], added to the scores for the choice alone.
        biases: of gate, up and down; None = none.
        activation, alpha, limit: see `kernels.ops.Activation`.
        weigh_inputs: an expert's input is multiplied with the token's weight, not its output.
        shared: computed for every token, and added; None = none.
        shared_gate: [1, hidden]; the sigmoid of its output is a factor of the shared expert's.
        expert_scales: [experts], factors of the weights; None = none.
        latent: projections [size, hidden] of what the experts read and [hidden, size] of their
            sum, and whether these have biases; None = experts read and write hidden values.
    """

    router: Part
    routing: Routing
    gate: Part | None
    up: Part
    down: Part
    router_bias: Part | None = None
    choice_bias: Part | None = None
    biases: tuple[Part, Part, Part] | None = None
    activation: Activation = Activation.silu
    alpha: float = 0.0
    limit: float = 0.0
    weigh_inputs: bool = False
    shared: SharedExpertSpec | None = None
    shared_gate: Part | None = None
    latent: tuple[Part, Part, bool] | None = None
    expert_scales: Part | None = None

    def build(self, context: BuildContext) -> MoE:
        return MoE(self, context)


class MoE:
    """x [T, hidden] → [T, hidden]. Each rank has a share of every expert's intermediate values."""

    def __init__(self, spec: MoESpec, context: BuildContext) -> None:
        source = context.source
        self._routing = spec.routing
        self.router = source.matrix(Matrix((spec.router,), float32=True))
        self._router_bias, self._choice_bias, self._scales = (
            None if part is None else source.vector(Vector((part,)))
            for part in (spec.router_bias, spec.choice_bias, spec.expert_scales)
        )
        self.experts = _experts(spec, context)
        self._sites = _sites(spec, source.sites, self.experts)
        self.shared = None if spec.shared is None else spec.shared.build(context)
        self.shared_gate = (
            None if spec.shared_gate is None else Linear(source, Matrix((spec.shared_gate,)))
        )
        self.latent = None
        if spec.latent is not None:
            *parts, bias = spec.latent
            self.latent = [Linear(source, Matrix((part,)), bias) for part in parts]

    def __call__(self, ops: Ops, x: Value, by: Value | None = None) -> Value:
        """`by`: what the router reads, where it is not x."""
        logits = ops.linear(x if by is None else by, self.router, self._router_bias)
        chosen = ops.route(logits, self._routing, self._choice_bias, self._scales)
        read = x if self.latent is None else self.latent[0](ops, x)
        if ops.adapted and self._sites is not None:
            y = ops.adapted_experts(read, chosen, self.experts, *self._sites)
        else:
            y = ops.experts(read, chosen, self.experts)
        y = ops.all_reduce(y)
        if self.latent is not None:
            y = self.latent[1](ops, y)
        if self.shared is None:
            return y
        shared = self.shared(ops, x)
        if self.shared_gate is not None:
            shared = ops.gate_rows(shared, self.shared_gate(ops, x))
        return ops.add(y, shared)


def _sites(
    spec: MoESpec, sites: Sites, experts: ExpertWeights
) -> tuple[AdapterSite, AdapterSite] | None:
    """Gate and up, and down; None where adapters cannot add to these experts."""
    if spec.gate is None or spec.activation == Activation.clamped_swiglu:
        return None
    if not all("{}" in part.name for part in (spec.gate, spec.up, spec.down)):
        return None
    run = GATE_UP_RUN if experts.up is None else 0
    ranks = spec.down.num_inputs // experts.intermediate
    count = spec.routing.experts
    both = sites.add(Matrix((spec.gate, spec.up), "outputs", run, count), run, ranks)
    return both, sites.add(Matrix((spec.down,), "inputs", experts=count), 0)


def _experts(spec: MoESpec, context: BuildContext) -> ExpertWeights:
    source, count = context.source, spec.routing.experts
    whole_runs = (spec.up.num_rows // source.group.size) % GATE_UP_RUN == 0
    up: Sequence[Weight] | None = None
    if spec.gate is None:
        gate = source.matrix(Matrix((spec.up,), "outputs", 0, count))
    elif source.interleave_gate_up and whole_runs:
        both = source.matrix(Matrix((spec.gate, spec.up), "outputs", GATE_UP_RUN, count))
        gate, up = both[:count], both[count:] or None
    else:
        gate, up = (source.matrix(Matrix((p,), "outputs", 0, count)) for p in (spec.gate, spec.up))
    down = source.matrix(Matrix((spec.down,), "inputs", 0, count))
    gate_bias = up_bias = down_bias = None
    if spec.biases is not None:
        of_gate, of_up, of_down = spec.biases
        if up is None:
            gate_bias = source.vector(Vector((of_gate, of_up), True, GATE_UP_RUN, experts=count))
        else:
            gate_bias, up_bias = (
                source.vector(Vector((b,), True, experts=count)) for b in (of_gate, of_up)
            )
        # A sum over ranks contains the bias once.
        bias = source.vector(Vector((of_down,), experts=count))
        down_bias = bias if source.group.rank == 0 else None
    return ExpertWeights(
        gate,
        up,
        down,
        gate_bias,
        up_bias,
        down_bias,
        activation=spec.activation,
        alpha=spec.alpha,
        limit=spec.limit,
        weigh_inputs=spec.weigh_inputs,
    )
