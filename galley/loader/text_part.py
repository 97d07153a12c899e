"""The text model within a checkpoint that has other modalities too: its config and its tensors.

Its config is nested under `text_config`; the other modalities' tensors are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_TIED = "tie_word_embeddings"
#: Keys of the outer config that the text model needs, where its own has none.
_OUTER = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "dtype",
    "torch_dtype",
    "quantization_config",
    "compression_config",
    _TIED,
    "projection_dim",
)
#: In the text model's config: the class that the whole checkpoint names.
TEXT_OF = "text_part_of"
#: Names of tensors as they are stored → as the text model alone has them.
_PREFIXES = (
    ("vlm.language_model.model.", "model."),
    ("vlm.language_model.", "model."),
    ("vlm.model.language_model.", "model."),
    ("embedding_proj_layer.", "linear."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.language_model.", "model."),
    ("lm_head.", "lm_head."),
    ("text_model.", ""),
    ("text_projection.", "text_projection."),
    *((name, name) for name in ("model.layers.", "model.embed_tokens.", "model.norm.")),
)


@dataclass(frozen=True)
class TextModel:
    """The class of a text model, and what its configs leave out where it has its default."""

    architecture: str
    defaults: Mapping[str, Any] = field(default_factory=dict)


#: Values that configs of LLaVA leave out.
_LLAMA = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
}
#: Values that configs of CLIP leave out.
_CLIP = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
}
#: Classes whose first configs have the keys of the text model at the top.
_FLAT = ("Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration")
_COLPALI = "ColPaliForRetrieval"
#: `model_type` of a `text_config` → its class (open set).
TEXT_MODELS: dict[str, TextModel] = {
    "clip_text_model": TextModel("CLIPTextModelWithProjection", _CLIP),
    "gemma3_text": TextModel(
        "Gemma3ForCausalLM", {"vocab_size": 262208, "max_position_embeddings": 131072}
    ),
    "gemma3n_text": TextModel("Gemma3nForCausalLM"),
    "gemma4_text": TextModel("Gemma4ForCausalLM"),
    "gemma": TextModel("GemmaForCausalLM"),
    "gemma2": TextModel("Gemma2ForCausalLM"),
    "llama": TextModel("LlamaForCausalLM", _LLAMA),
    "llama4_text": TextModel("Llama4ForCausalLM"),
    "ministral3": TextModel("Ministral3ForCausalLM"),
    "mistral": TextModel("MistralForCausalLM"),
    "phi3": TextModel("Phi3ForCausalLM"),
    "qwen2": TextModel("Qwen2ForCausalLM"),
    "qwen2_5_vl_text": TextModel("Qwen2ForCausalLM"),
    "qwen2_vl_text": TextModel("Qwen2ForCausalLM"),
    "qwen3": TextModel("Qwen3ForCausalLM"),
    "qwen3_moe": TextModel("Qwen3MoeForCausalLM"),
    "qwen3_vl_moe_text": TextModel(
        "Qwen3MoeForCausalLM", {"norm_topk_prob": True, "experts_transposed": True}
    ),
    "qwen3_vl_text": TextModel("Qwen3ForCausalLM"),
    "smollm3": TextModel("SmolLM3ForCausalLM"),
    "qwen3_5_moe_text": TextModel("Qwen3_5MoeForCausalLM"),
    "qwen3_5_text": TextModel("Qwen3_5ForCausalLM"),
}


def text_part(config: dict[str, Any]) -> dict[str, Any]:
    """The text model's config as if it stood alone; a config of text or of an unknown class as it
    is."""
    text, names = config.get("text_config"), config.get("architectures")
    if not isinstance(names, list) or not names:
        return config
    if names[0] == _COLPALI and isinstance(config.get("vlm_config"), dict):
        return _colpali(config)
    if names[0] in _FLAT and not isinstance(text, dict):
        return {**config, "architectures": ["Qwen2ForCausalLM"], TEXT_OF: names[0]}
    if not isinstance(text, dict):
        return config
    known = TEXT_MODELS.get(str(text.get("model_type")))
    if known is None:
        return config
    outer = {key: config[key] for key in _OUTER if key in config}
    # The class of the whole ties its embeddings, or not.
    given_outside = {_TIED} & outer.keys()
    own = {k: v for k, v in text.items() if v is not None and k not in given_outside}
    return {
        **known.defaults,
        **outer,
        **own,
        "architectures": [known.architecture],
        TEXT_OF: names[0],
    }


def _colpali(config: dict[str, Any]) -> dict[str, Any]:
    """The text model of ColPali, whose tokens all see each other, with its projection."""
    dtype: dict[str, Any] = {k: config[k] for k in ("dtype", "torch_dtype") if k in config}
    text = text_part({**dtype, **config["vlm_config"], "architectures": [_COLPALI]})
    if text.get("architectures") != ["GemmaForCausalLM"]:
        return config
    own = {"architectures": ["ColPaliTextModel"], "dim": config.get("embedding_dim", 128)}
    return {"use_bidirectional_attention": True, **text, **own, "linear_bias": True}


def text_name(name: str) -> str | None:
    """The name of a tensor in the text model; None = it belongs to another part."""
    for stored, wanted in _PREFIXES:
        if name.startswith(stored):
            return wanted + name.removeprefix(stored)
    return None
