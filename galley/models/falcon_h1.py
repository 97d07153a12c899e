"""Falcon-H1: attention and Mamba-2 side by side in each layer, with multipliers."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from galley.config import ModelInfo
from galley.kernels.ops import ForwardContext, Ops, Value
from galley.layers.context import BuildContext
from galley.layers.linear import Linear
from galley.layers.mamba2 import Multipliers
from galley.layers.norm import RMSNormSpec
from galley.layers.scale import Multiplier
from galley.layers.weight_specs import Matrix, Part
from galley.models.config import ModelFields, model_fields
from galley.models.decoder import DecoderSpec, LayerSpec, MixerSpec
from galley.models.llama import Sizes, attention, decoder, read_sizes
from galley.models.mamba2 import read_mamba2


class Branch(msgspec.Struct, frozen=True):
    """A mixer that reads factor_in * x; its result is multiplied by factor_out."""

    mixer: MixerSpec
    factor_in: float
    factor_out: float


class BranchesSpec(msgspec.Struct, frozen=True):
    """Mixers that read the same x and whose results are added."""

    branches: Sequence[Branch]

    def build(self, context: BuildContext) -> Branches:
        return Branches(self, context)


class Branches:
    """x [T, hidden] → [T, hidden]."""

    def __init__(self, spec: BranchesSpec, context: BuildContext) -> None:
        self._branches = [
            (
                Multiplier(context.source, branch.factor_in),
                branch.mixer.build(context),
                Multiplier(context.source, branch.factor_out),
            )
            for branch in spec.branches
        ]

    def __call__(self, ops: Ops, x: Value, ctx: ForwardContext) -> Value:
        first, *others = [
            after(ops, mixer(ops, before(ops, x), ctx)) for before, mixer, after in self._branches
        ]
        for other in others:
            first = ops.add(first, other)
        return first


class ScaledMLPSpec(msgspec.Struct, frozen=True):
    """down(up(x) * silu(gate_scale * gate(x))) * scale."""

    name: str
    hidden: int
    intermediate: int
    bias: bool
    gate_scale: float
    scale: float

    def build(self, context: BuildContext) -> ScaledMLP:
        return ScaledMLP(self, context)


class ScaledMLP:
    """x [T, hidden] → [T, hidden]."""

    def __init__(self, spec: ScaledMLPSpec, context: BuildContext) -> None:
        source, name, h, n = context.source, spec.name, spec.hidden, spec.intermediate
        parts = (Part(f"{name}.gate_proj", (n, h)), Part(f"{name}.up_proj", (n, h)))
        self.gate_up = Linear(source, Matrix(parts), spec.bias)
        self.down = Linear(source, Matrix((Part(f"{name}.down_proj", (h, n)),)), spec.bias)
        self._sizes = (n, n)
        self._gate_scale = spec.gate_scale
        self._scale = Multiplier(source, spec.scale)

    def __call__(self, ops: Ops, x: Value) -> Value:
        gate, up = ops.split(self.gate_up(ops, x), self._sizes)
        return self._scale(ops, self.down(ops, ops.gate(up, gate, "silu", self._gate_scale)))


def falcon_h1(model_info: ModelInfo) -> DecoderSpec:
    """Multipliers of the embedding, the logits, and of what each layer computes."""
    config = model_fields(model_info)
    sizes = read_sizes(config, eps=1e-5)
    return replace(
        decoder(sizes, [_layer(config, sizes, i) for i in range(sizes.layers)]),
        norm=RMSNormSpec("model.final_layernorm", sizes.hidden, sizes.eps),
        embedding_scale=config.number("embedding_multiplier", 1.0),
        logits_scale=config.number("lm_head_multiplier", 1.0),
    )


def _layer(config: ModelFields, sizes: Sizes, index: int) -> LayerSpec:
    prefix = f"model.layers.{index}"
    bias = config.flag("attention_bias", False)
    attends = attention(sizes, f"{prefix}.self_attn", qkv_bias=bias, out_bias=bias)
    # Keys are multiplied: so are the scores.
    attends = replace(attends, scale=attends.scale * config.number("key_multiplier", 1.0))
    state = read_mamba2(config, f"{prefix}.mamba", sizes.hidden, sizes.eps)
    z, x, b, c, dt = _numbers(config, "ssm_multipliers", 5)
    state = replace(
        state,
        multipliers=Multipliers(gate=z, x=x, b=b, c=c, dt=dt),
        eps=state.eps if config.flag("mamba_rms_norm", False) else None,
        gate_first=not config.flag("mamba_norm_before_gate", True),
    )
    if config.flag("projectors_bias", False) != state.bias:
        raise config.wrong("projectors_bias", f"{state.bias} as mamba_proj_bias")
    gate_scale, scale = _numbers(config, "mlp_multipliers", 2)
    return LayerSpec(
        mixer=BranchesSpec(
            [
                Branch(
                    state,
                    config.number("ssm_in_multiplier", 1.0),
                    config.number("ssm_out_multiplier", 1.0),
                ),
                Branch(
                    attends,
                    config.number("attention_in_multiplier", 1.0),
                    config.number("attention_out_multiplier", 1.0),
                ),
            ]
        ),
        mlp=ScaledMLPSpec(
            f"{prefix}.feed_forward",
            sizes.hidden,
            sizes.intermediate,
            config.flag("mlp_bias", False),
            gate_scale,
            scale,
        ),
        mixer_norm=RMSNormSpec(f"{prefix}.input_layernorm", sizes.hidden, sizes.eps),
        mlp_norm=RMSNormSpec(f"{prefix}.pre_ff_layernorm", sizes.hidden, sizes.eps),
    )


def _numbers(config: ModelFields, key: str, count: int) -> list[float]:
    values = config.values.get(key)
    if values is None:
        return [1.0] * count
    if (
        not isinstance(values, list)
        or len(values) != count
        or not all(isinstance(v, int | float) for v in values)
    ):
        raise config.wrong(key, f"a list of {count} numbers")
    return [float(v) for v in values]
