"""GGUF's architectures, tensor names and q/k row order in Hugging Face's terms.

One entry per architecture (open set); knows no values.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Architecture:
    """The meaning of a `general.architecture` of GGUF.

    Attributes:
        hf_class, model_type: Hugging Face's class name and model_type.
        interleaved_qk: rows of q and k are stored pairwise, as llama.cpp rotates them.
    """

    hf_class: str
    model_type: str
    interleaved_qk: bool = False


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("LlamaForCausalLM", "llama", interleaved_qk=True),
    "mistral": Architecture("MistralForCausalLM", "mistral", interleaved_qk=True),
    "qwen2": Architecture("Qwen2ForCausalLM", "qwen2"),
    "qwen3": Architecture("Qwen3ForCausalLM", "qwen3"),
}

_TOP = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER_TENSOR = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")

#: Rope frequency factors: part of the config, not a weight.
ROPE_FACTORS = "rope_freqs.weight"


def hf_name(name: str) -> str:
    """Hugging Face's name of a GGUF tensor. An unknown name is returned unchanged, and reported as
    unused by `CheckpointWeights.finish`."""
    stem, _, kind = name.rpartition(".")
    if stem in _TOP:
        return f"{_TOP[stem]}.{kind}"
    match = _LAYER_TENSOR.fullmatch(name)
    if match and match[2] in _IN_LAYER:
        return f"model.layers.{match[1]}.{_IN_LAYER[match[2]]}.{match[3]}"
    return name


def deinterleaved_rows(num_heads: int, head_dim: int) -> np.ndarray:
    """int64 [num_heads * head_dim]: the row in the file of each logical row of q or k.

    The file pairs the two halves of a head, since llama.cpp rotates neighbours:

        logical   r0 r1 … r(h-1) | r(h) r(h+1) …        h = head_dim / 2
        file      r0 r(h) r1 r(h+1) …
    """
    in_file = np.arange(num_heads * head_dim).reshape(num_heads, head_dim // 2, 2)
    return np.ascontiguousarray(in_file.swapaxes(1, 2)).reshape(-1)
