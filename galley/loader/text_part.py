"""The text model within a checkpoint that has other modalities too: its config and its tensors.

Its config is nested under `text_config`; the other modalities' tensors are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: Keys of the outer config that the text model needs, where its own has none.
_OUTER = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "dtype",
    "torch_dtype",
    "quantization_config",
    "compression_config",
    "tie_word_embeddings",
)
#: In the text model's config: the class that the whole checkpoint names.
TEXT_OF = "text_part_of"
#: Names of tensors as they are stored → as the text model alone has them.
_PREFIXES = (
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.language_model.", "model."),
    ("lm_head.", "lm_head."),
)


@dataclass(frozen=True)
class TextModel:
    """The class of a text model, and what its configs leave out where it has its default."""

    architecture: str
    defaults: Mapping[str, Any] = field(default_factory=dict)


#: `model_type` of a `text_config` → its class (open set).
TEXT_MODELS: dict[str, TextModel] = {
    "gemma3_text": TextModel(
        "Gemma3ForCausalLM", {"vocab_size": 262208, "max_position_embeddings": 131072}
    ),
    "gemma4_text": TextModel("Gemma4ForCausalLM"),
    "ministral3": TextModel("Ministral3ForCausalLM"),
    "mistral": TextModel("MistralForCausalLM"),
    "qwen3_5_moe_text": TextModel("Qwen3_5MoeForCausalLM"),
    "qwen3_5_text": TextModel("Qwen3_5ForCausalLM"),
}


def text_part(config: dict[str, Any]) -> dict[str, Any]:
    """The text model's config as if it stood alone; a config of text or of an unknown class as it
    is."""
    text, names = config.get("text_config"), config.get("architectures")
    if not isinstance(text, dict) or not isinstance(names, list) or not names:
        return config
    known = TEXT_MODELS.get(str(text.get("model_type")))
    if known is None:
        return config
    outer = {key: config[key] for key in _OUTER if key in config}
    own = {key: value for key, value in text.items() if value is not None}
    return {
        **known.defaults,
        **outer,
        **own,
        "architectures": [known.architecture],
        TEXT_OF: names[0],
    }


def text_name(name: str) -> str | None:
    """The name of a tensor in the text model; None = it belongs to another part."""
    for stored, wanted in _PREFIXES:
        if name.startswith(stored):
            return wanted + name.removeprefix(stored)
    return None
