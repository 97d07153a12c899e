"""params.json, which describes a model in Mistral's own form of a checkpoint (`mistral`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from galley.errors import ModelError
from galley.loader.fields import Fields, read_json

PARAMS = "params.json"
#: Key of params.json → key of config.json.
_KEYS = {
    "dim": "hidden_size",
    "hidden_dim": "intermediate_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "norm_eps": "rms_norm_eps",
    "rope_theta": "rope_theta",
    "vocab_size": "vocab_size",
    "sliding_window": "sliding_window",
    "tied_embeddings": "tie_word_embeddings",
}
_NEEDED = ("dim", "hidden_dim", "n_layers", "n_heads", "vocab_size")
#: Keys whose presence changes nothing, or that are read below.
_OTHERS = (
    "model_type",
    "max_seq_len",
    "max_position_embeddings",
    "max_batch_size",
    "moe",
    "causal",
)
#: Where params.json names no longest length.
_POSITIONS = 128_000


def has_params(directory: Path) -> bool:
    """Whether params.json is all that describes the model."""
    return not (directory / "config.json").is_file() and (directory / PARAMS).is_file()


def config_of_params(path: Path) -> dict[str, Any]:
    """The config.json that says what params.json says. Raises ModelError."""
    fields = Fields(read_json(path), str(path))
    experts = fields.table("moe")
    for key, value in fields.values.items():
        if key not in _KEYS and key not in _OTHERS and value not in (None, False, {}, []):
            raise ModelError(
                f"{path}: {key} is not supported in this form of a checkpoint; use its Hugging "
                "Face form (config.json and model*.safetensors)"
            )
    for key in _NEEDED:
        fields.integer(key, least=1)
    longest = fields.integer("max_position_embeddings", fields.integer("max_seq_len", _POSITIONS))
    config: dict[str, Any] = {
        "architectures": ["MixtralForCausalLM" if experts else "MistralForCausalLM"],
        "model_type": "mixtral" if experts else "mistral",
        "hidden_act": "silu",
        "max_position_embeddings": longest,
        "num_key_value_heads": fields.values["n_heads"],
        "rope_theta": 10_000.0,
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config |= {ours: fields.values[key] for key, ours in _KEYS.items() if fields.has(key)}
    if experts:
        moe = Fields(experts, f"{path}: moe")
        config["num_local_experts"] = moe.integer("num_experts", least=1)
        config["num_experts_per_tok"] = moe.integer("num_experts_per_tok", least=1)
    return config
