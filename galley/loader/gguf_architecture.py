"""An architecture of GGUF in Hugging Face's terms, and the tensor names of Llama."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy as np

from galley.loader.fields import Fields

LLAMA_TOP = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
ATTENTION_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
}
MLP_NAMES = {
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
LLAMA_NAMES = {**ATTENTION_NAMES, **MLP_NAMES}
#: Of families that name the last norm differently.
FINAL_LAYERNORM = {**LLAMA_TOP, "output_norm": "model.final_layernorm"}

#: Metadata, GGUF's architecture and the names of all tensors → config keys of the family.
ConfigReader = Callable[[Fields, str, set[str]], dict[str, Any]]


class Architecture(msgspec.Struct, frozen=True):
    """The meaning of a `general.architecture` of GGUF.

    Attributes:
        hf_class, model_type: Hugging Face's class name and model_type.
        interleaved_qk: rows of q and k are stored pairwise, as llama.cpp rotates them.
        top, in_layer: Hugging Face's names of tensors; those in layers are below `layers`.
        fused: a tensor of a layer in Hugging Face's names → tensors of the file whose rows it
            consists of, in order.
        split: a tensor of a layer in the file → Hugging Face's names of its entries along the
            first axis; or, of a tensor of all experts, of the equal parts of each one's rows.
        norm_plus: the file's norms are those of Hugging Face plus this.
        config: reads what differs between layers or is not common to all; None = a Llama-like
            model of equal layers.
        plain_norms: ends of names of norms that are stored as they are, whatever `norm_plus`.
        computed: tensors by Hugging Face's name that the file has as metadata; None = none.
        joined_qkv: attn_qkv holds all of q, then k, then v, where Hugging Face has them by KV head.
        where: a tensor, and what takes the place of this entry if the file has it.
    """

    hf_class: str
    model_type: str
    interleaved_qk: bool = False
    top: Mapping[str, str] = msgspec.field(default_factory=lambda: LLAMA_TOP)
    in_layer: Mapping[str, str] = msgspec.field(default_factory=lambda: LLAMA_NAMES)
    layers: str = "model.layers"
    fused: Mapping[str, tuple[str, ...]] = {}
    split: Mapping[str, tuple[str, ...]] = {}
    norm_plus: float = 0.0
    plain_norms: tuple[str, ...] = ()
    computed: Callable[[Fields, str], dict[str, np.ndarray]] | None = None
    config: ConfigReader | None = None
    joined_qkv: bool = False
    where: tuple[str, Architecture] | None = None
