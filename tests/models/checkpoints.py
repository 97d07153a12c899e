"""Tiny random checkpoints of every family, made by transformers, and their logits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import torch
import transformers
from transformers.core_model_loading import revert_weight_conversion

from galley.config import ModelInfo
from galley.loader.common_keys import with_common_keys
from galley.loader.hf_names import model_name
from galley.loader.rope import max_position
from galley.loader.tensor import RawTensor, TensorHeader
from tests.models.remote import Remote

SIZES = {
    "vocab_size": 131,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}

#: Rotary settings by name, in the keys of new and of old config files.
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 5000.0},
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
        "rope_theta": 500000.0,
    },
    "yarn": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "rope_theta": 10000.0,
    },
    "yarn-all-keys": {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 32,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "mscale": 0.7,
        "mscale_all_dim": 1.3,
        "truncate": False,
        "rope_theta": 10000.0,
    },
    "yarn-attention-factor": {
        "rope_type": "yarn",
        "factor": 2.0,
        "original_max_position_embeddings": 128,
        "attention_factor": 1.25,
        "rope_theta": 1000.0,
    },
}


#: Its defaults are ids beyond the tiny vocabulary.
PHI3 = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


@dataclass
class Case:
    """A family and the config values that make this checkpoint special.

    Attributes:
        family: transformers' name, of which its classes' names are made.
        config: beside `SIZES`.
        head: of the name of transformers' model class.
        attention: transformers' implementation of it.
        remote: the family that this is a reference of.
        config_class: transformers' config class, if it is not FAMILYConfig.
        build: the model, of a family that is not in transformers.
    """

    family: str
    config: dict[str, Any]
    head: str = "ForCausalLM"
    attention: str = "eager"
    remote: Remote | None = None
    config_class: str | None = None
    build: Callable[[], torch.nn.Module] | None = None

    @property
    def architecture(self) -> str:
        return self.remote.architecture if self.remote else self.family + self.head

    @property
    def has_experts(self) -> bool:
        return any("experts" in key for key in self.config)


CASES: dict[str, Case] = {
    **{f"llama-rope-{k}": Case("Llama", {"rope_parameters": v}) for k, v in ROPES.items()},
    "llama-mha": Case("Llama", {"num_key_value_heads": 4}),
    "llama-one-kv-head": Case("Llama", {"num_key_value_heads": 1, "rms_norm_eps": 1e-5}),
    "llama-biases": Case("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-head-dim": Case("Llama", {"head_dim": 32}),
    "llama-tied": Case("Llama", {"tie_word_embeddings": True}),
    "llama-odd-sizes": Case(
        "Llama",
        {"hidden_size": 72, "intermediate_size": 88, "head_dim": 18, "num_attention_heads": 6},
    ),
    "llama-head-80": Case("Llama", {"hidden_size": 80, "head_dim": 80, "num_key_value_heads": 1}),
    "mistral-window": Case("Mistral", {"sliding_window": 7}),
    "mistral-no-window": Case("Mistral", {"sliding_window": None}),
    "mixtral-window": Case(
        "Mixtral", {"sliding_window": 21, "num_local_experts": 6, "num_experts_per_tok": 3}
    ),
    "phi3": Case("Phi3", PHI3),
    "phi3-windows-part-of-a-head": Case(
        "Phi3",
        {
            **PHI3,
            "sliding_window": 11,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.75,
            },
        },
    ),
    "qwen2": Case("Qwen2", {}),
    "qwen2-seven-heads-a-group": Case(
        "Qwen2",
        {"hidden_size": 112, "num_attention_heads": 14, "intermediate_size": 152, "head_dim": 8},
    ),
    "qwen2-windows": Case(
        "Qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}
    ),
    "qwen2-tied": Case("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": Case("Qwen3", {"head_dim": 32}),
    "qwen3-head-256": Case("Qwen3", {"head_dim": 256, "num_attention_heads": 2}),
    "qwen3-bias-windows": Case(
        "Qwen3",
        {
            "head_dim": 16,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
}


def make(case: Case, seed: int = 0) -> torch.nn.Module:
    """A transformers model of the case, all weights (norms and biases too) random, float32."""
    torch.manual_seed(seed)
    if case.build is not None:
        model = case.build().eval()
    else:
        config_class = getattr(transformers, case.config_class or f"{case.family}Config")
        config = config_class(**{**SIZES, **case.config})
        config._attn_implementation = case.attention
        model = getattr(transformers, case.family + case.head)(config).eval().float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_" in name or name.endswith("LayerNorm.weight"):
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.3)
            else:
                parameter.normal_(0, 0.12)
        for name, buffer in model.named_buffers():
            if name.endswith("correction_bias"):
                buffer.normal_(0, 0.3)
    return case.remote.wrap(model) if case.remote else model


class StateDict:
    """A checkpoint in memory: what a loader would read if the model were saved.

    `changes` are made to the config alone, not to the tensors.
    """

    def __init__(self, model: torch.nn.Module, **changes: Any) -> None:
        config = {**model.config.to_dict(), "architectures": [type(model).__name__]}
        own = with_common_keys(config)
        method = changes.get("quantization_config", {}).get("quant_method")
        self.model_info = replace(info_of(own), hf_config={**own, **changes}, quantization=method)
        # Names and shapes as on disk, where experts may be stored one by one.
        state = dict(model.state_dict())
        if isinstance(model, transformers.PreTrainedModel):
            saved = revert_weight_conversion(model, state)
            state = {model_name(type(model).__name__, name): t for name, t in saved.items()}
        if self.model_info.hf_config.get("tie_word_embeddings"):
            state.pop("lm_head.weight", None)
        self.arrays = {name: t.detach().float().numpy() for name, t in state.items()}

    def names(self) -> list[str]:
        return list(self.arrays)

    def header(self, name: str) -> TensorHeader:
        return TensorHeader(tuple(self.arrays[name].shape), str(self.arrays[name].dtype))

    def tensor(self, name: str) -> RawTensor:
        data = self.arrays[name]
        return RawTensor(name, tuple(data.shape), str(data.dtype), data)


def info_of(config: dict[str, Any]) -> ModelInfo:
    return ModelInfo(
        architecture=config["architectures"][0],
        hf_config=config,
        vocab_size=config["vocab_size"],
        max_position=max_position(config, "a test"),
        dtype="float32",
    )


def in_bfloat16(model: torch.nn.Module) -> torch.nn.Module:
    """A copy with bfloat16 parameters; rotary frequencies stay float32, as in a loaded model."""
    copied = copy.deepcopy(model)
    for parameter in copied.parameters():
        parameter.data = parameter.data.bfloat16()
    return copied


def hf_logits(model: torch.nn.Module, ids: np.ndarray) -> np.ndarray:
    """[n, vocab] of one sequence, by transformers."""
    with torch.inference_mode():
        return model(torch.from_numpy(ids)[None].long()).logits[0].float().numpy()


def quantized(name: str, values: np.ndarray, dtype: str) -> RawTensor:
    """A tensor as a file of that dtype would hold it: "float32", "bfloat16" or a GGUF type."""
    if dtype == "float32":
        return RawTensor(name, values.shape, dtype, values)
    if dtype == "bfloat16":
        return RawTensor(name, values.shape, dtype, values.astype(ml_dtypes.bfloat16))
    data = gguf.quants.quantize(values, getattr(gguf.GGMLQuantizationType, dtype))
    return RawTensor(name, values.shape, dtype, data)
