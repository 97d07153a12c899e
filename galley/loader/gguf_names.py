"""GGUF's architectures, tensor names and q/k row order in Hugging Face's terms.

One entry per architecture (open set); knows no values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy as np

from galley.loader import gguf_dense, gguf_experts, gguf_gpt, gguf_states
from galley.loader.fields import Fields

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
_BACKBONE = {
    "token_embd": "backbone.embeddings",
    "output_norm": "backbone.norm_f",
    "output": "lm_head",
}
_FINAL_LAYERNORM = {**_TOP, "output_norm": "model.final_layernorm"}
_LFM2_TOP = {**_TOP, **dict.fromkeys(("token_embd_norm", "output_norm"), "model.embedding_norm")}

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
        norm_plus: the file's norms are those of Hugging Face plus this.
        config: reads what differs between layers or is not common to all; None = a Llama-like
            model of equal layers.
        joined_qkv: attn_qkv holds all of q, then k, then v, where Hugging Face has them by KV head.
        where: a tensor, and what takes the place of this entry if the file has it.
    """

    hf_class: str
    model_type: str
    interleaved_qk: bool = False
    top: Mapping[str, str] = msgspec.field(default_factory=lambda: _TOP)
    in_layer: Mapping[str, str] = msgspec.field(default_factory=lambda: _IN_LAYER)
    layers: str = "model.layers"
    fused: Mapping[str, tuple[str, ...]] = {}
    norm_plus: float = 0.0
    config: ConfigReader | None = None
    joined_qkv: bool = False
    where: tuple[str, Architecture] | None = None


_MIXTRAL = Architecture(
    "MixtralForCausalLM",
    "mixtral",
    interleaved_qk=True,
    in_layer=gguf_experts.MIXTRAL_NAMES,
    config=gguf_experts.mixtral,
)

ARCHITECTURES: dict[str, Architecture] = {
    "deepseek2": Architecture(
        "DeepseekV2ForCausalLM",
        "deepseek_v2",
        in_layer=gguf_experts.DEEPSEEK_NAMES,
        config=gguf_experts.deepseek2,
    ),
    "dots1": Architecture(
        "Dots1ForCausalLM", "dots1", in_layer=gguf_experts.GLM_NAMES, config=gguf_experts.dots1
    ),
    "glm4moe": Architecture(
        "Glm4MoeForCausalLM",
        "glm4_moe",
        in_layer=gguf_experts.GLM_NAMES,
        config=gguf_experts.glm4_moe,
    ),
    "gpt-oss": Architecture(
        "GptOssForCausalLM",
        "gpt_oss",
        in_layer=gguf_experts.GPT_OSS_NAMES,
        config=gguf_experts.gpt_oss,
    ),
    "granitemoe": Architecture(
        "GraniteMoeSharedForCausalLM",
        "granitemoeshared",
        interleaved_qk=True,
        in_layer=gguf_experts.GRANITE_NAMES,
        fused=gguf_experts.GRANITE_FUSED,
        config=gguf_experts.granite_moe,
    ),
    "minimax-m2": Architecture(
        "MiniMaxM2ForCausalLM",
        "minimax_m2",
        in_layer=gguf_experts.MIXTRAL_NAMES,
        config=gguf_experts.minimax_m2,
    ),
    "olmoe": Architecture(
        "OlmoeForCausalLM", "olmoe", in_layer=gguf_experts.QWEN_NAMES, config=gguf_experts.olmoe
    ),
    "qwen2moe": Architecture(
        "Qwen2MoeForCausalLM",
        "qwen2_moe",
        in_layer=gguf_experts.QWEN_NAMES,
        config=gguf_experts.qwen2_moe,
    ),
    "qwen3moe": Architecture(
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        in_layer=gguf_experts.QWEN_NAMES,
        config=gguf_experts.qwen3_moe,
    ),
    "cohere2": Architecture("Cohere2ForCausalLM", "cohere2", config=gguf_dense.cohere),
    "command-r": Architecture("CohereForCausalLM", "cohere", config=gguf_dense.cohere),
    "falcon-h1": Architecture(
        "FalconH1ForCausalLM",
        "falcon_h1",
        top=_FINAL_LAYERNORM,
        in_layer=gguf_states.FALCON_H1_NAMES,
        config=gguf_states.falcon_h1,
    ),
    "gemma": Architecture("GemmaForCausalLM", "gemma", norm_plus=1.0, config=gguf_dense.gemma),
    "gemma2": Architecture(
        "Gemma2ForCausalLM",
        "gemma2",
        in_layer=_IN_LAYER | gguf_dense.GEMMA2_NAMES,
        norm_plus=1.0,
        config=gguf_dense.gemma2,
    ),
    "gemma3": Architecture(
        "Gemma3ForCausalLM",
        "gemma3_text",
        in_layer=_IN_LAYER | gguf_dense.GEMMA2_NAMES,
        norm_plus=1.0,
        config=gguf_dense.gemma3,
    ),
    "glm4": Architecture("Glm4ForCausalLM", "glm4", in_layer=_IN_LAYER | gguf_dense.GLM4_NAMES),
    "granite": Architecture(
        "GraniteForCausalLM", "granite", interleaved_qk=True, config=gguf_dense.granite
    ),
    "granitehybrid": Architecture(
        "GraniteMoeHybridForCausalLM",
        "granitemoehybrid",
        interleaved_qk=True,
        in_layer=gguf_states.GRANITE_HYBRID_NAMES,
        fused=gguf_states.GRANITE_HYBRID_FUSED,
        config=gguf_states.granite_hybrid,
    ),
    "jamba": Architecture(
        "JambaForCausalLM",
        "jamba",
        top=_FINAL_LAYERNORM,
        in_layer=gguf_states.JAMBA_NAMES,
        config=gguf_states.jamba,
    ),
    "lfm2": Architecture(
        "Lfm2ForCausalLM",
        "lfm2",
        top=_LFM2_TOP,
        in_layer=gguf_states.LFM2_NAMES,
        config=gguf_states.lfm2,
    ),
    "llama": Architecture(
        "LlamaForCausalLM",
        "llama",
        interleaved_qk=True,
        where=("blk.0.ffn_gate_exps.weight", _MIXTRAL),
    ),
    "mamba": Architecture(
        "MambaForCausalLM",
        "mamba",
        top=_BACKBONE,
        in_layer=gguf_states.MAMBA_NAMES,
        layers="backbone.layers",
        config=gguf_states.mamba,
    ),
    "mamba2": Architecture(
        "Mamba2ForCausalLM",
        "mamba2",
        top=_BACKBONE,
        in_layer=gguf_states.MAMBA2_NAMES,
        layers="backbone.layers",
        config=gguf_states.mamba2,
    ),
    "mistral": Architecture("MistralForCausalLM", "mistral", interleaved_qk=True),
    "mistral3": Architecture("Ministral3ForCausalLM", "ministral3", interleaved_qk=True),
    "nemotron_h": Architecture(
        "NemotronHForCausalLM",
        "nemotron_h",
        top=_BACKBONE,
        in_layer=gguf_states.NEMOTRON_H_NAMES,
        layers="backbone.layers",
        config=gguf_states.nemotron_h,
    ),
    "olmo": Architecture("OlmoForCausalLM", "olmo", interleaved_qk=True, config=gguf_dense.olmo),
    "olmo2": Architecture(
        "Olmo2ForCausalLM",
        "olmo2",
        in_layer=_IN_LAYER | gguf_dense.OLMO2_NAMES,
        config=gguf_dense.olmo2,
    ),
    "phi3": Architecture(
        "Phi3ForCausalLM",
        "phi3",
        in_layer=_IN_LAYER | gguf_dense.PHI3_NAMES,
        config=gguf_dense.phi3,
    ),
    "qwen2": Architecture("Qwen2ForCausalLM", "qwen2"),
    "qwen3": Architecture("Qwen3ForCausalLM", "qwen3"),
    "smollm3": Architecture(
        "SmolLM3ForCausalLM", "smollm3", interleaved_qk=True, config=gguf_dense.smollm3
    ),
    # Families with layer norms, and those that are Llama with little else.
    "arcee": Architecture("ArceeForCausalLM", "arcee", interleaved_qk=True, config=gguf_gpt.arcee),
    "baichuan": Architecture(
        "LlamaForCausalLM", "llama", interleaved_qk=True, config=gguf_gpt.baichuan
    ),
    "bloom": Architecture(
        "BloomForCausalLM",
        "bloom",
        top=gguf_gpt.BLOOM_TOP,
        in_layer=gguf_gpt.BLOOM_NAMES,
        layers="transformer.h",
        config=gguf_gpt.bloom,
        joined_qkv=True,
    ),
    "exaone": Architecture("LlamaForCausalLM", "llama"),
    "exaone4": Architecture(
        "Exaone4ForCausalLM",
        "exaone4",
        in_layer={**_IN_LAYER, **gguf_gpt.EXAONE4_NAMES},
        config=gguf_gpt.exaone4,
    ),
    "falcon": Architecture(
        "FalconForCausalLM",
        "falcon",
        top=gguf_gpt.BLOOM_TOP,
        in_layer=gguf_gpt.BLOOM_NAMES,
        layers="transformer.h",
        config=gguf_gpt.falcon,
        joined_qkv=True,
        where=(
            gguf_gpt.FALCON_SECOND_NORM,
            Architecture(
                "FalconForCausalLM",
                "falcon",
                top=gguf_gpt.BLOOM_TOP,
                in_layer=gguf_gpt.FALCON_40B_NAMES,
                layers="transformer.h",
                config=gguf_gpt.falcon,
                joined_qkv=True,
            ),
        ),
    ),
    "gpt2": Architecture(
        "GPT2LMHeadModel",
        "gpt2",
        top=gguf_gpt.GPT2_TOP,
        in_layer=gguf_gpt.GPT2_NAMES,
        layers="transformer.h",
        config=gguf_gpt.gpt2,
    ),
    "gptneox": Architecture(
        "GPTNeoXForCausalLM",
        "gpt_neox",
        top=gguf_gpt.GPT_NEOX_TOP,
        in_layer=gguf_gpt.GPT_NEOX_NAMES,
        layers="gpt_neox.layers",
        config=gguf_gpt.gpt_neox,
        joined_qkv=True,
    ),
    "hunyuan-dense": Architecture(
        "HunYuanDenseV1ForCausalLM",
        "hunyuan_v1_dense",
        in_layer={**_IN_LAYER, **gguf_gpt.HUNYUAN_NAMES},
    ),
    "internlm2": Architecture("LlamaForCausalLM", "llama", interleaved_qk=True),
    "minicpm": Architecture(
        "MiniCPMForCausalLM", "minicpm", interleaved_qk=True, config=gguf_gpt.minicpm
    ),
    "nemotron": Architecture(
        "NemotronForCausalLM", "nemotron", norm_plus=1.0, config=gguf_gpt.nemotron
    ),
    "phi2": Architecture(
        "PhiForCausalLM",
        "phi",
        top=_FINAL_LAYERNORM,
        in_layer={**_IN_LAYER, **gguf_gpt.PHI2_NAMES},
        config=gguf_gpt.phi2,
    ),
    "seed_oss": Architecture(
        "SeedOssForCausalLM",
        "seed_oss",
        in_layer={**_IN_LAYER, **gguf_gpt.SEED_OSS_NAMES},
        config=gguf_gpt.seed_oss,
    ),
    "stablelm": Architecture(
        "StableLmForCausalLM",
        "stablelm",
        in_layer={**_IN_LAYER, **gguf_gpt.STABLELM_NAMES},
        config=gguf_gpt.stablelm,
    ),
    "starcoder2": Architecture(
        "Starcoder2ForCausalLM",
        "starcoder2",
        in_layer={**_IN_LAYER, **gguf_gpt.STARCODER2_NAMES},
        config=gguf_gpt.starcoder2,
    ),
}

_LAYER_TENSOR = re.compile(r"blk\.(\d+)\.(.+?)(\.weight|\.bias)?")

#: Rope frequency factors: part of the config, not weights.
ROPE_FACTORS = "rope_freqs.weight"
LONG_FACTORS, SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"


def hf_name(name: str, architecture: Architecture) -> str:
    """Hugging Face's name of a GGUF tensor. An unknown name is returned unchanged, and reported as
    unused by `CheckpointWeights.finish`."""
    stem, _, kind = name.rpartition(".")
    if stem in architecture.top:
        return f"{architecture.top[stem]}.{kind}"
    match = _LAYER_TENSOR.fullmatch(name)
    if match is None:
        return name
    layer, stem, kind = match[1], match[2], match[3] or ""
    if not kind and stem.endswith("norm"):  # as the converter names a norm of Falcon-H1
        kind = ".weight"
    names = architecture.in_layer
    if stem + kind in names:
        return f"{architecture.layers}.{layer}.{names[stem + kind]}"
    return f"{architecture.layers}.{layer}.{names[stem]}{kind}" if stem in names else name


def fused_names(architecture: Architecture, layers: int) -> dict[str, list[str]]:
    """Of each tensor that is several in the file: its name, and their names."""
    return {
        f"{architecture.layers}.{layer}.{name}.weight": [f"blk.{layer}.{p}.weight" for p in parts]
        for layer in range(layers)
        for name, parts in architecture.fused.items()
    }


def rows_by_kv_head(heads: int, kv_heads: int, head_dim: int) -> np.ndarray:
    """int64: the row in the file of each logical row of q, k and v in one tensor.

    logical   q of KV head 0, its k, its v, q of KV head 1, …
    file      all of q, all of k, all of v
    """
    q, kv = heads * head_dim, kv_heads * head_dim
    parts = np.split(np.arange(q + 2 * kv), [q, q + kv])
    return np.concatenate([part.reshape(kv_heads, -1) for part in parts], axis=1).reshape(-1)


def deinterleaved_rows(num_heads: int, head_dim: int) -> np.ndarray:
    """int64 [num_heads * head_dim]: the row in the file of each logical row of q or k.

    The file pairs the two halves of a head, since llama.cpp rotates neighbours:

        logical   r0 r1 … r(h-1) | r(h) r(h+1) …        h = head_dim / 2
        file      r0 r(h) r1 r(h+1) …
    """
    in_file = np.arange(num_heads * head_dim).reshape(num_heads, head_dim // 2, 2)
    return np.ascontiguousarray(in_file.swapaxes(1, 2)).reshape(-1)
