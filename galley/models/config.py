"""Typed reads of a checkpoint's config; values that a family does not support are errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast, get_args

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.errors import ModelError
from galley.layers.rotary import (
    DynamicNTK,
    FrequencyFactors,
    LinearRotary,
    Llama3Rotary,
    LongRotary,
    ProportionalRotary,
    Rotary,
    YarnRotary,
)
from galley.loader.fields import Fields


class ModelFields(Fields):
    """Reads `ModelInfo.hf_config`. A wrong type or an unsupported value is a ModelError that
    names the key; null counts as missing."""

    def require(self, key: str, *allowed: object, default: object = None) -> None:
        """Check that the key has one of these values, or `default` if it is missing."""
        value = self._value(key, default)
        if value not in allowed:
            values = " or ".join(repr(a) for a in allowed)
            raise ModelError(f"{self.where}: {key} = {value!r} is not supported, only {values}")

    def with_defaults(self, **values: object) -> ModelFields:
        """The same, with these values where the config has none."""
        return ModelFields(
            {**values, **{k: v for k, v in self.values.items() if v is not None}}, self.where
        )

    def within(self, key: str) -> ModelFields:
        """The object under a key, empty where missing or null."""
        return ModelFields(self.table(key), f"{self.where}: {key}")

    def replaced(self, **values: object) -> ModelFields:
        """The same, with these values whatever the config has."""
        return ModelFields({**self.values, **values}, self.where)

    def above_zero(self, key: str, default: float | None = None) -> float:
        """A finite number above 0; without a default, a missing key is an error."""
        value = self.number(key, default)
        if value <= 0:
            raise self.wrong(key, "above 0")
        return value

    def optional_int(self, key: str) -> int | None:
        """A positive integer, or None where missing or null."""
        return self.integer(key, least=1) if self.has(key) else None


def model_fields(model_info: ModelInfo) -> ModelFields:
    return ModelFields(
        model_info.hf_config, f"{model_info.source or model_info.architecture}: config"
    )


RotaryReader = Callable[[int, float, ModelFields, int], Rotary]


def _plain(dim: int, theta: float, scaling: ModelFields, max_position: int) -> Rotary:
    return Rotary(dim, theta)


def _linear(dim: int, theta: float, scaling: ModelFields, max_position: int) -> Rotary:
    return LinearRotary(dim, theta, factor=scaling.above_zero("factor"))


def _frequency_factors(dim: int, theta: float, scaling: ModelFields, max_position: int) -> Rotary:
    return FrequencyFactors(dim, theta, factors=_factors(scaling, "factors", dim))


def _dynamic(dim: int, theta: float, scaling: ModelFields, max_position: int) -> Rotary:
    if scaling.has("alpha"):  # as Hunyuan has it: a base that does not depend on the length
        return Rotary(dim, theta * scaling.above_zero("alpha") ** (dim / (dim - 2)))
    return DynamicNTK(dim, theta, factor=scaling.above_zero("factor"), max_position=max_position)


def _ntk(dim: int, theta: float, scaling: ModelFields, max_position: int) -> Rotary:
    """As GTE has it: a larger base that does not depend on the length, and slower frequencies."""
    scaling.require("mixed_b", None, default=None)
    factor = scaling.above_zero("factor")
    return LinearRotary(dim, theta * factor, factor=factor ** (2 / dim))


def _llama3(dim: int, theta: float, scaling: ModelFields, max_position: int) -> Rotary:
    low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
    if high <= low:
        raise scaling.wrong("high_freq_factor", f"above low_freq_factor ({low})")
    return Llama3Rotary(
        dim,
        theta,
        factor=scaling.above_zero("factor"),
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position=_original(scaling, max_position),
    )


def _yarn(dim: int, theta: float, scaling: ModelFields, max_position: int) -> Rotary:
    original = _original(scaling, max_position)
    return YarnRotary(
        dim,
        theta,
        factor=scaling.above_zero("factor", max_position / original),
        original_max_position=original,
        beta_fast=scaling.number("beta_fast", 32.0) or 32.0,
        beta_slow=scaling.number("beta_slow", 1.0) or 1.0,
        attention_factor=(
            scaling.number("attention_factor") if scaling.has("attention_factor") else None
        ),
        mscale=scaling.number("mscale", 0.0),
        mscale_all_dim=scaling.number("mscale_all_dim", 0.0),
        truncate=scaling.flag("truncate", True),
    )


def _long(dim: int, theta: float, scaling: ModelFields, max_position: int) -> Rotary:
    original = _original(scaling, max_position)
    stretch = max_position / original
    default = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
    amplitude = scaling.above_zero("attention_factor", default)
    return LongRotary(
        dim,
        theta,
        short=_factors(scaling, "short_factor", dim),
        long=_factors(scaling, "long_factor", dim),
        original_max_position=original,
        # The two apart, as Phi-3.5-MoE has them.
        attention_factor=scaling.above_zero("short_mscale", amplitude),
        long_attention_factor=scaling.above_zero("long_mscale", amplitude),
    )


def _proportional(dim: int, theta: float, scaling: ModelFields, max_position: int) -> Rotary:
    part = scaling.number("partial_rotary_factor", 1.0)
    if not 0 < part <= 1:
        raise scaling.wrong("partial_rotary_factor", "above 0 and at most 1")
    factor = scaling.above_zero("factor", 1.0)
    return ProportionalRotary(dim, theta, rotated=int(part * dim // 2), factor=factor)


#: rope_type → reader of its settings. mrope: of text, where all axes have one position.
ROTARY_TYPES: dict[str, RotaryReader] = {
    "default": _plain,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _long,
    "su": _long,
    "mrope": _plain,
    "ntk": _ntk,
    "proportional": _proportional,
    "frequency_factors": _frequency_factors,
}


def read_rotary(
    config: ModelFields,
    head_dim: int,
    default_theta: float,
    *,
    partial: bool = False,
    interleaved: bool = False,
) -> Rotary:
    """The rotary embedding that a config asks for.

    Reads `rope_parameters` (rope_type, rope_theta and the type's own keys) as newer checkpoints
    have it, or else `rope_scaling` (with `rope_type` or `type`) beside `rope_theta`.

    Args:
        partial: the family may rotate the first part of each head alone.
        interleaved: of the rotary embedding, as in `Rotary`.
    """
    key = "rope_parameters" if config.table("rope_parameters") else "rope_scaling"
    scaling = config.within(key).with_defaults(
        original_max_position_embeddings=config.values.get("original_max_position_embeddings")
    )
    if any(isinstance(value, dict) for value in scaling.values.values()):
        raise ModelError(f"{scaling.where}: settings per kind of layer are not supported")
    theta = scaling.number("rope_theta", config.number("rope_theta", default_theta))
    if theta <= 0:
        raise scaling.wrong("rope_theta", "above 0")
    kind = scaling.text("rope_type", scaling.text("type", "default"))
    # A proportional embedding has a frequency of 0 for what it does not rotate.
    whole = kind == "proportional"
    dim = head_dim if whole else _rotary_dim(config, scaling, head_dim, partial)
    reader = ROTARY_TYPES.get(kind)
    if reader is None:
        known = ", ".join(ROTARY_TYPES)
        raise ModelError(f"{scaling.where}: rope_type {kind!r} is not supported; known: {known}")
    max_position = config.integer("max_position_embeddings", least=1)
    return replace(reader(dim, theta, scaling, max_position), interleaved=interleaved)


def rope_of_kind(config: ModelFields, kind: str) -> ModelFields:
    """The config with the rope settings of one kind of layers, where it has them by kind."""
    parameters = config.table("rope_parameters")
    if not any(isinstance(value, dict) for value in parameters.values()):
        return config
    if not isinstance(parameters.get(kind), dict):
        raise ModelError(f"{config.where}: rope_parameters: {kind} is missing")
    return config.replaced(rope_parameters=parameters[kind])


def _rotary_dim(config: ModelFields, scaling: ModelFields, head_dim: int, partial: bool) -> int:
    """How many elements of a head are rotated."""
    key = "partial_rotary_factor"
    if not partial:
        config.require(key, 1, default=1)
        scaling.require(key, 1, default=1)
        return head_dim
    factor = scaling.number(key, config.number(key, 1.0))
    dim = int(head_dim * factor)
    if not 0 < dim <= head_dim or dim % 2:
        owner = scaling if scaling.has(key) else config
        raise owner.wrong(key, f"such that an even part of head_dim={head_dim} is rotated")
    return dim


def _factors(scaling: Fields, key: str, dim: int) -> tuple[float, ...]:
    factors = scaling.values.get(key)
    if not isinstance(factors, list) or len(factors) != dim // 2:
        raise scaling.wrong(key, f"a list of {dim // 2} numbers")
    return tuple(factors)


def _original(scaling: ModelFields, max_position: int) -> int:
    return scaling.integer("original_max_position_embeddings", max_position, least=1)


def read_limits(config: ModelFields, key: str) -> tuple[float, float]:
    """[least, greatest] of a number, from 0 to infinity where missing."""
    value: Any = config.values.get(key)
    if value is None:
        return 0.0, math.inf
    # An infinity is written as such or, by newer versions, as an object.
    numbers: list[Any] = [x.get("__float__") if isinstance(x, dict) else x for x in value or ()]
    try:
        least, greatest = (float(x) for x in numbers)
    except (TypeError, ValueError):
        raise config.wrong(key, "two numbers") from None
    if not 0 <= least <= greatest:
        raise config.wrong(key, "two numbers, at least 0 and in order")
    return least, greatest


#: Older names of kinds of layers.
_KINDS = {"mamba": "linear_attention", "attention": "full_attention"}


def layer_kinds(config: ModelFields, num_layers: int, known: Sequence[str]) -> list[str]:
    """The kind of each layer, from `layer_types` or, in older checkpoints, `layers_block_type`.

    Raises ModelError for a list of another length and for a kind that is not among `known`.
    """
    key = "layer_types" if config.has("layer_types") else "layers_block_type"
    kinds: Any = config.values.get(key)
    if isinstance(kinds, list) and len(kinds) == num_layers:
        kinds = [_KINDS.get(kind, kind) if isinstance(kind, str) else kind for kind in kinds]
        if all(kind in known for kind in kinds):
            return kinds
    raise config.wrong(key, f"{num_layers} of {' or '.join(known)}")


LayerKind = Literal["full_attention", "sliding_attention"]


def attention_kinds(
    config: ModelFields, num_layers: int, default: Callable[[int], LayerKind]
) -> list[LayerKind]:
    """`layer_types` of layers with attention, or the default of each where the config has none."""
    if not config.has("layer_types"):
        return [default(i) for i in range(num_layers)]
    return cast(list[LayerKind], layer_kinds(config, num_layers, get_args(LayerKind)))


def every_nth_full(n: int) -> Callable[[int], LayerKind]:
    """Every n-th layer sees all tokens, the others have a window."""
    return lambda i: "sliding_attention" if (i + 1) % n else "full_attention"


def window_of(config: ModelFields, kinds: Sequence[LayerKind]) -> int:
    """`sliding_window`, 0 where no layer is of that kind."""
    if "sliding_attention" not in kinds:
        return 0
    if not config.has("sliding_window"):
        raise ModelError(f"{config.where}: layer_types has sliding layers without a window")
    return config.integer("sliding_window", least=1)


def layer_windows(config: ModelFields, num_layers: int) -> list[int]:
    """Per layer, the sliding window of a family that has `use_sliding_window`; 0 = none.

    `layer_types` names the layers with a window; otherwise those from `max_window_layers` on have
    it.
    """
    on = config.flag("use_sliding_window", False) and config.has("sliding_window")
    first = config.integer("max_window_layers", 28) if on else num_layers
    kinds = attention_kinds(
        config, num_layers, lambda i: "sliding_attention" if i >= first else "full_attention"
    )
    if not on and "sliding_attention" in kinds:
        raise ModelError(f"{config.where}: layer_types has sliding layers without a window")
    window = window_of(config, kinds)
    return [window if kind == "sliding_attention" else 0 for kind in kinds]


__all__ = [
    "ROTARY_TYPES",
    "LayerKind",
    "ModelFields",
    "attention_kinds",
    "every_nth_full",
    "layer_kinds",
    "layer_windows",
    "model_fields",
    "read_rotary",
    "rope_of_kind",
    "window_of",
]
