"""adapter_config.json of PEFT: what acts, what is harmless, what is refused by name."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import msgspec

from galley.errors import ModelError
from galley.loader.fields import Fields, read_json

#: Keys that say nothing about the numbers, or that the names of the tensors tell.
_HARMLESS = {
    *("peft_type", "peft_version", "task_type", "auto_mapping", "revision", "inference_mode"),
    *("base_model_name_or_path", "megatron_core", "fan_in_fan_out", "runtime_config"),
    *("target_modules", "exclude_modules", "modules_to_save", "layers_pattern"),
    *("layers_to_transform", "init_lora_weights", "lora_dropout", "ensure_weight_tying"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size"),
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "bias"),
    *("use_dora", "lora_bias", "target_parameters"),
}
#: Starts of training that change the weights of the base model as well.
_CHANGED_BASES = ("pissa", "olora", "corda", "loftq", "lora_ga")
#: A pattern is searched in every module's name: what could take long is refused.
_MAX_PATTERN = 300
_MAX_REPEATS = 4


class LoRAConfig(msgspec.Struct, frozen=True):
    """The settings that the use of the tensors needs.

    Attributes:
        rank, alpha: of modules that no pattern names.
        rank_patterns, alpha_patterns: (regular expression of the end of a module's name, value).
        rank_stabilised: the scale is alpha / sqrt(rank) instead of alpha / rank.
        modules_to_save: last names of modules that are trained as a whole, or of what is in them.
        dora: each module has a magnitude vector.
        lora_bias: each B has a bias.
        biases: modules may have biases in place of the base model's.
    """

    rank: int
    alpha: float
    rank_patterns: tuple[tuple[re.Pattern[str], float], ...] = ()
    alpha_patterns: tuple[tuple[re.Pattern[str], float], ...] = ()
    rank_stabilised: bool = False
    modules_to_save: frozenset[str] = frozenset()
    dora: bool = False
    lora_bias: bool = False
    biases: bool = False

    def saves(self, name: str) -> bool:
        """Whether a module is one of `modules_to_save`, or a part of one."""
        return not self.modules_to_save.isdisjoint(name.split("."))

    def rank_of(self, module: str) -> int:
        return int(_matching(self.rank_patterns, module, self.rank))

    def scale_of(self, module: str) -> float:
        """Factor of B A x."""
        rank = self.rank_of(module)
        alpha = _matching(self.alpha_patterns, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)


def _matching(
    patterns: tuple[tuple[re.Pattern[str], float], ...], module: str, otherwise: float
) -> float:
    return next((value for pattern, value in patterns if pattern.match(module)), otherwise)


def read_config(path: Path) -> LoRAConfig:
    """Raises ModelError naming the key."""
    values = read_json(path)
    fields = Fields(values, str(path))
    if values.get("peft_type") != "LORA":
        raise fields.wrong("peft_type", '"LORA": other adapters are not supported')
    if values.get("trainable_token_indices"):
        raise ModelError(f"{path}: trainable_token_indices is not supported")
    if values.get("bias", "none") not in ("none", "lora_only", "all"):
        raise fields.wrong("bias", '"none", "lora_only" or "all"')
    dora, lora_bias = fields.flag("use_dora", False), fields.flag("lora_bias", False)
    if dora and lora_bias:
        raise ModelError(f"{path}: use_dora with lora_bias is not supported")
    start = values.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(_CHANGED_BASES):
        raise ModelError(
            f"{path}: init_lora_weights {start!r} changes the base model's weights: save the "
            "adapter as one of the original model"
        )
    for key, value in values.items():
        if value and key not in _HARMLESS:
            raise ModelError(f"{path}: {key} is not supported")
    return LoRAConfig(
        rank=fields.integer("r", least=1, most=2**16),
        alpha=_positive(fields, "lora_alpha"),
        rank_patterns=_patterns(path, values, "rank_pattern", whole=True),
        alpha_patterns=_patterns(path, values, "alpha_pattern"),
        rank_stabilised=fields.flag("use_rslora", False),
        modules_to_save=_names(path, values, "modules_to_save"),
        dora=dora,
        lora_bias=lora_bias,
        biases=values.get("bias", "none") != "none",
    )


def _names(path: Path, values: dict[str, Any], key: str) -> frozenset[str]:
    """The last names of the modules that a list names."""
    given = values.get(key) or []
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise ModelError(f"{path}: {key} is not a list of names")
    return frozenset(name.rpartition(".")[2] for name in given)


def _positive(fields: Fields, key: str) -> float:
    value = fields.number(key)
    if not math.isfinite(value) or abs(value) > 2**20:
        raise fields.wrong(key, "a finite number")
    return value


def _patterns(
    path: Path, values: dict[str, Any], key: str, whole: bool = False
) -> tuple[tuple[re.Pattern[str], float], ...]:
    given = values.get(key) or {}
    if not isinstance(given, dict):
        raise ModelError(f"{path}: {key} is not an object")
    patterns = []
    for name, value in given.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or (whole and (value != int(value) or value < 1)):
            raise ModelError(f"{path}: {key} {name!r:.80} is {value!r:.40}, not a number")
        patterns.append((_compiled(path, key, name), float(value)))
    return tuple(patterns)


def _compiled(path: Path, key: str, name: str) -> re.Pattern[str]:
    """The pattern of a module's last names, as PEFT reads it."""
    repeats = len(re.findall(r"[*+{]", name))
    if len(name) > _MAX_PATTERN or repeats > _MAX_REPEATS or re.search(r"\)[*+{]", name):
        raise ModelError(f"{path}: {key}: the pattern {name!r:.80} is too complicated")
    try:
        return re.compile(rf"(.*\.)?({name})$")
    except (re.error, OverflowError, RecursionError) as error:
        raise ModelError(f"{path}: {key}: {name!r:.80} is no pattern: {error}") from None
