"""GGUF metadata → Hugging Face config keys and ModelInfo."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from galley.config import ModelInfo
from galley.errors import ModelError
from galley.loader.chat_templates import templates_of_gguf
from galley.loader.config_changes import ConfigChanges
from galley.loader.fields import MAX_LAYERS, MAX_POSITIONS, Fields
from galley.loader.gguf import GGUFFile, TensorInfo
from galley.loader.gguf_dense import equal_layers
from galley.loader.gguf_encoders import TOKEN_TYPES, classifier, pooling_of, ranks
from galley.loader.gguf_names import (
    ARCHITECTURES,
    LONG_FACTORS,
    ROPE_FACTORS,
    SHORT_FACTORS,
    Architecture,
)
from galley.loader.hf_info import architecture_in, info_of_directory
from galley.loader.rope import max_position

_GENERATION = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
}


def info_of_gguf(
    file: GGUFFile,
    tensors: dict[str, TensorInfo] | None = None,
    changes: ConfigChanges | None = None,
) -> ModelInfo:
    """Facts of a GGUF model.

    Args:
        file: the file with the metadata (the first part of a split one).
        tensors: all tensors of a split file; default: the file's own.
        changes: a Hugging Face config that replaces the metadata, and overrides.

    Raises:
        ModelError: an unsupported architecture or option, by name, or a missing or wrong key.
    """
    tensors = file.tensors if tensors is None else tensors
    changes = changes or ConfigChanges()
    arch, known = architecture_of(file)
    if not tensors:
        raise ModelError(f"{file.path}: has no tensors")
    dtype = _main_dtype(tensors)
    quantization = "gguf" if any(t.type.dense is None for t in tensors.values()) else None
    template = templates_of_gguf(file).get("default")
    if changes.directory is not None:
        model_info = info_of_directory(changes.directory, changes)
        return dataclasses.replace(
            model_info,
            dtype=dtype,
            quantization=quantization,
            online=changes.online(quantization),
            chat_template=template or model_info.chat_template,
            source=str(file.path),
        )
    meta = metadata(file, arch)
    config = changes.applied(_hf_config(file, meta, arch, known, tensors), str(file.path))
    fields = Fields(config, str(file.path))
    generation = {ours: meta.number(key) for key, ours in _GENERATION.items() if meta.has(key)}
    if "top_k" in generation:
        generation["top_k"] = int(generation["top_k"])
    return ModelInfo(
        architecture=architecture_in(config, str(file.path)),
        hf_config=config,
        vocab_size=fields.integer("vocab_size", least=1),
        max_position=max_position(config, str(file.path)),
        dtype=dtype,
        quantization=quantization,
        online=changes.online(quantization),
        bos_token_id=next(iter(fields.ids("bos_token_id")), None),
        eos_token_ids=(
            fields.ids("eos_token_id")
            if "eos_token_id" in changes.overrides
            else _eos_token_ids(meta)
        ),
        generation=generation,
        chat_template=template,
        source=str(file.path),
        model_impl=changes.model_impl,
        trust_remote_code=changes.trust_remote_code,
        pooling=pooling_of(meta, arch),
        head="sequence" if ranks(meta, arch) else None,
    )


def architecture_of(file: GGUFFile) -> tuple[str, Architecture]:
    """(GGUF's name, its entry); ModelError for an unsupported one."""
    arch = file.get("general.architecture")
    known = ARCHITECTURES.get(arch) if isinstance(arch, str) else None
    if known is not None and known.where is not None and known.where[0] in file.tensors:
        known = known.where[1]
    if known is None:
        raise ModelError(
            f"{file.path}: GGUF architecture {arch!r} is not supported; "
            f"supported: {', '.join(ARCHITECTURES)}"
        )
    return arch, known


def metadata(file: GGUFFile, arch: str) -> Fields:
    """The scalar keys for the config; large arrays (the vocabulary) stay in the file."""
    values = {}
    for key in file.keys:
        wanted = key.startswith((f"{arch}.", "general.", "xielu.")) or key == TOKEN_TYPES
        if wanted or key.endswith("_token_id"):
            value = file.get(key)
            values[key] = _shortest(value) if isinstance(value, float) else value
    factors = file.tensors.get(ROPE_FACTORS)
    if factors is not None and len(factors.shape) == 1:
        values[ROPE_FACTORS] = _factors(file, ROPE_FACTORS, 2 * factors.shape[0])
    return Fields(values, str(file.path))


def _shortest(value: float) -> float:
    """1e-05 for the float32 nearest to it, which reads as 9.99999974e-06 in float64."""
    return float(str(np.float32(value))) if math.isfinite(value) else value


def _hf_config(
    file: GGUFFile,
    meta: Fields,
    arch: str,
    known: Architecture,
    tensors: dict[str, TensorInfo],
) -> dict[str, Any]:
    if meta.integer(f"{arch}.expert_count", 0) and not any(
        "{}" in name for name in known.in_layer.values()
    ):
        raise ModelError(f"{file.path}: {arch} with experts is not supported in GGUF")
    embedding = tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ModelError(f"{file.path}: has no token_embd.weight of two dimensions")
    layers = meta.integer(f"{arch}.block_count", least=1, most=MAX_LAYERS)
    read = known.config or equal_layers
    seen = _Seen(meta.values)
    own = read(Fields(seen, meta.where), arch, set(tensors))
    if ranks(meta, arch):
        own |= classifier(meta, arch, set(tensors))
    _refuse_unread(meta, arch, seen.keys_read)
    config: dict[str, Any] = {
        "architectures": [known.hf_class],
        "model_type": known.model_type,
        "vocab_size": embedding.shape[0],
        "hidden_size": meta.integer(f"{arch}.embedding_length", least=1),
        "num_hidden_layers": layers,
        "max_position_embeddings": meta.integer(
            f"{arch}.context_length", least=1, most=MAX_POSITIONS
        ),
        **_epsilons(meta, arch),
        "rope_theta": meta.number(f"{arch}.rope.freq_base", 10000.0),
        "rope_scaling": None,
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in tensors,
        "bos_token_id": _token_id(meta, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": _token_id(meta, "tokenizer.ggml.eos_token_id"),
        **own,
    }
    if "head_dim" in own and "rope_parameters" not in own:
        config |= _rotation(file, meta, arch, own["head_dim"])
    return config


class _Seen(dict[str, Any]):
    """Metadata that knows which of its keys have been asked for."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.keys_read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.keys_read.add(key)
        return super().get(key, default)


#: Keys that change what some architectures compute, and the values that change nothing.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.output_scale": (0.0, 1.0),
    "attn_logit_softcapping": (0.0,),
    "embedding_scale": (0.0, 1.0),
    "expert_group_scale": (0.0, 1.0),
    "expert_weights_scale": (0.0, 1.0),
    "final_logit_softcapping": (0.0,),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "router_logit_softcapping": (0.0,),
}


def _refuse_unread(meta: Fields, arch: str, read: set[str]) -> None:
    """Raise ModelError for a key that the file has and the architecture's reader does not know."""
    for name, neutral in _NEUTRAL.items():
        key = f"{arch}.{name}"
        if key not in read and meta.has(key) and meta.values[key] not in neutral:
            raise ModelError(f"{meta.where}: {key} = {meta.values[key]} is not supported")


def _rotation(file: GGUFFile, meta: Fields, arch: str, head_dim: int) -> dict[str, Any]:
    """Checks the heads, and reads the keys of their rotary embedding."""
    if head_dim % 2:
        raise ModelError(f"{file.path}: heads of {head_dim} values are not halves to be rotated")
    if meta.integer(f"{arch}.attention.value_length", head_dim) != head_dim:
        raise ModelError(f"{file.path}: keys and values of different length are not supported")
    config: dict[str, Any] = {"rope_scaling": _rope_scaling(file, meta, arch, head_dim)}
    rotary_dim = meta.integer(f"{arch}.rope.dimension_count", head_dim)
    config["partial_rotary_factor"] = rotary_dim / head_dim
    return config


def _rope_scaling(file: GGUFFile, meta: Fields, arch: str, head_dim: int) -> dict[str, Any] | None:
    """Hugging Face's rope_scaling, or for files with a factor per frequency (Llama 3 and later)
    {"rope_type": "frequency_factors", "factors": [head_dim / 2]}: inverse frequency i is
    theta ** (-2 i / head_dim) / factors[i]."""
    key = f"{arch}.rope.scaling"
    kind = meta.text(f"{key}.type", "none")
    if ROPE_FACTORS in file.tensors:
        if kind != "none":
            raise ModelError(f"{file.path}: rope scaling {kind} with {ROPE_FACTORS}")
        factors = _factors(file, ROPE_FACTORS, head_dim)
        return {"rope_type": "frequency_factors", "factors": factors}
    if LONG_FACTORS in file.tensors:
        rotary_dim = meta.integer(f"{arch}.rope.dimension_count", head_dim)
        return {
            "rope_type": "longrope",
            "long_factor": _factors(file, LONG_FACTORS, rotary_dim),
            "short_factor": _factors(file, SHORT_FACTORS, rotary_dim),
            "attention_factor": meta.number(f"{key}.attn_factor", 1.0),
            "original_max_position_embeddings": meta.integer(
                f"{key}.original_context_length", least=1
            ),
        }
    if kind == "none":
        factor = meta.number(f"{arch}.rope.scale_linear", 1.0)
        return None if factor == 1.0 else {"rope_type": "linear", "factor": factor}
    if kind == "linear":
        return {"rope_type": "linear", "factor": meta.number(f"{key}.factor")}
    if kind == "yarn":
        growth = f"{arch}.attention.temperature_scale"
        if meta.has(growth):
            return _growing_yarn(meta, key, arch, meta.number(growth))
        return _yarn(meta, key, f"{arch}.context_length")
    raise ModelError(f"{file.path}: rope scaling {kind!r} is not supported (linear and yarn are)")


def _growing_yarn(meta: Fields, key: str, arch: str, growth: float) -> dict[str, Any]:
    """YaRN of Ministral 3, whose queries grow with their position."""
    log = f"{key}.yarn_log_multiplier"
    plain = Fields({k: v for k, v in meta.values.items() if k != log}, meta.where)
    return _yarn(plain, key, f"{arch}.context_length") | {
        "mscale": 1.0,
        "mscale_all_dim": meta.number(log, 0.0),
        "llama_4_scaling_beta": growth,
    }


def _yarn(meta: Fields, key: str, context_key: str) -> dict[str, Any]:
    # These change the attention scale in ways that Hugging Face's keys cannot say.
    for option, plain in (
        ("attn_factor", 1.0),
        ("yarn_ext_factor", 1.0),
        ("yarn_attn_factor", 1.0),
        ("yarn_log_multiplier", 0.1),
    ):
        if meta.number(f"{key}.{option}", plain) != plain:
            raise ModelError(f"{meta.where}: {key}.{option} other than {plain} is not supported")
    scaling: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": meta.number(f"{key}.factor"),
        "original_max_position_embeddings": meta.integer(
            f"{key}.original_context_length", meta.integer(context_key, least=1), least=1
        ),
    }
    for theirs, ours in (
        ("yarn_beta_fast", "beta_fast"),
        ("yarn_beta_slow", "beta_slow"),
    ):
        if meta.has(f"{key}.{theirs}"):
            scaling[ours] = meta.number(f"{key}.{theirs}")
    return scaling


def _factors(file: GGUFFile, name: str, head_dim: int) -> list[float]:
    info = file.tensors.get(name)
    if info is None or info.shape != (head_dim // 2,) or info.type.name != "float32":
        raise ModelError(f"{file.path}: {name} is not float32 [{head_dim // 2}]")
    factors = file.data(info)
    if not (np.isfinite(factors).all() and (factors > 0).all()):
        raise ModelError(f"{file.path}: {name} holds numbers that are not positive")
    return [float(x) for x in factors]


def _epsilons(meta: Fields, arch: str) -> dict[str, float]:
    """Of root-mean-square norms, or of layer norms where the file has that instead."""
    rms, layer = (
        f"{arch}.attention.{key}" for key in ("layer_norm_rms_epsilon", "layer_norm_epsilon")
    )
    if meta.has(layer) and not meta.has(rms):
        names = ("layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon")
        return dict.fromkeys(names, meta.number(layer))
    return {"rms_norm_eps": meta.number(rms)}


def _token_id(meta: Fields, key: str) -> int | None:
    return meta.integer(key) if meta.has(key) else None


def _eos_token_ids(meta: Fields) -> tuple[int, ...]:
    """End of text, of turn and of message: each ends a generation."""
    keys = [f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom")]
    return tuple(dict.fromkeys(meta.integer(key) for key in keys if meta.has(key)))


def _main_dtype(tensors: dict[str, TensorInfo]) -> str:
    """The type that most bytes of at least one tensor have."""
    total: dict[str, int] = {}
    for info in tensors.values():
        total[info.type.name] = total.get(info.type.name, 0) + info.num_bytes
    return max(total, key=lambda name: total[name])
