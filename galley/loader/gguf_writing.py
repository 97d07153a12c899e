"""A Hugging Face model in GGUF's terms: architecture, keys and tensor names, to write a file.

The inverse of what the readers (`gguf_names`, `gguf_info`) do, for architectures whose config needs
no more than the keys below. Whether it was right is seen by reading: the file's config must
describe the same model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from galley.errors import ModelError
from galley.loader.gguf_architecture import Architecture
from galley.loader.gguf_names import ARCHITECTURES, deinterleaved_rows

#: Hugging Face's key → GGUF's, below the architecture; the first that the config has.
_KEYS = {
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "layer_norm_eps": "attention.layer_norm_epsilon",
    "sliding_window": "attention.sliding_window",
    "num_experts": "expert_count",
    "num_local_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
    "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
    "logit_scale": "logit_scale",
}
_COUNTS = re.compile(r"(length|count|count_kv|window)$")
#: Classes that are written as Llama, and their architecture without an entry of that name.
_AS_LLAMA = ("LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM")


class Place(msgspec.Struct, frozen=True):
    """A tensor of the file.

    Attributes:
        sources: Hugging Face's names of what it consists of: one tensor, or one for each expert.
        rows: the logical row of each of its rows; None = they are in order.
        plus: added to the values.
    """

    sources: tuple[str, ...]
    rows: NDArray[np.intp] | None = None
    plus: float = 0.0


def architecture_for(hf_class: str, model: str) -> tuple[str, Architecture]:
    """(GGUF's name, its entry). ModelError where there is none."""
    if hf_class in _AS_LLAMA:
        entry = ARCHITECTURES["llama"]
        mixture = hf_class == "MixtralForCausalLM" and entry.where is not None
        return "llama", entry.where[1] if mixture and entry.where else entry
    for name, entry in ARCHITECTURES.items():
        if entry.hf_class == hf_class and not (entry.fused or entry.joined_qkv or entry.computed):
            return name, entry
    raise ModelError(f"{model}: {hf_class} cannot be written as GGUF")


def keys_of(config: Mapping[str, Any], arch: str, head_dim: int) -> dict[str, Any]:
    """GGUF's keys of a config, without those of the tokenizer."""
    keys: dict[str, Any] = {"general.architecture": arch}
    for theirs, ours in _KEYS.items():
        value, key = config.get(theirs), f"{arch}.{ours}"
        if isinstance(value, int | float) and not isinstance(value, bool) and key not in keys:
            keys[key] = int(value) if _COUNTS.search(ours) else float(value)
    if config.get("use_sliding_window") is False:
        keys.pop(f"{arch}.attention.sliding_window", None)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    rotated = rope.get("partial_rotary_factor", config.get("partial_rotary_factor")) or 1.0
    keys |= {
        f"{arch}.attention.key_length": head_dim,
        f"{arch}.attention.value_length": head_dim,
        f"{arch}.rope.dimension_count": int(head_dim * rotated),
        f"{arch}.rope.freq_base": float(theta),
    }
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind in ("linear", "yarn"):
        keys |= {
            f"{arch}.rope.scaling.type": kind,
            f"{arch}.rope.scaling.factor": float(rope["factor"]),
        }
    if kind == "yarn" and rope.get("original_max_position_embeddings"):
        original = int(rope["original_max_position_embeddings"])
        keys[f"{arch}.rope.scaling.original_context_length"] = original
    return keys


def places_of(
    names: Mapping[str, tuple[int, ...]],
    entry: Architecture,
    config: Mapping[str, Any],
    head_dim: int,
) -> dict[str, Place]:
    """The file's tensors, in order, of a model's tensors by their names and shapes.

    Raises ModelError for one that has no name in the architecture.
    """
    heads = int(config["num_attention_heads"])
    kv_heads = int(config.get("num_key_value_heads") or heads)
    gathered: dict[str, dict[int, str]] = {}
    for name in names:
        stem, expert = _gguf_name(name, entry)
        gathered.setdefault(stem, {})[expert] = name
    places = {}
    for stem, sources in gathered.items():
        rows, plus = None, 0.0
        if entry.interleaved_qk and (".attn_q." in stem or ".attn_k." in stem):
            rows = np.argsort(
                deinterleaved_rows(kv_heads if ".attn_k." in stem else heads, head_dim)
            )
        if stem.endswith("norm.weight") and not stem.endswith(entry.plain_norms or ("\0",)):
            plus = entry.norm_plus
        places[stem] = Place(tuple(sources[i] for i in sorted(sources)), rows, plus)
    return places


def _gguf_name(name: str, entry: Architecture) -> tuple[str, int]:
    """(GGUF's name, number of the expert or 0)."""
    stem, _, kind = name.rpartition(".")
    for ours, theirs in entry.top.items():
        if stem == theirs:
            return f"{ours}.{kind}", 0
    match = re.fullmatch(re.escape(entry.layers) + r"\.(\d+)\.(.+)", name)
    for ours, theirs in entry.in_layer.items() if match else ():
        for ending in ("", f".{kind}"):
            pattern = re.escape(theirs + ending).replace(r"\{\}", r"(\d+)")
            found = re.fullmatch(pattern, match[2]) if match else None
            if match and found:
                return f"blk.{match[1]}.{ours}{ending}", int(found[1]) if found.groups() else 0
    raise ModelError(f"tensor {name} has no name in GGUF as {entry.hf_class} has it")
