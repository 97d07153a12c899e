"""GGUF architectures with recurrent states: their config keys, tensor names and stored values.

llama.cpp's converter stores A = -exp(A_log), convolutions without their axis of one, and some
vectors as [n, 1] or in groups. Multipliers of Falcon-H1 are part of its weights in the file.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
from msgspec.structs import replace

from galley.errors import ModelError
from galley.loader.fields import MAX_LAYERS, Fields
from galley.loader.gguf_architecture import FINAL_LAYERNORM, LLAMA_TOP, Architecture

#: Tensors of a Mamba-2 block, below its own name.
_MAMBA2 = {
    "ssm_in": "in_proj",
    "ssm_conv1d": "conv1d",
    "ssm_dt.bias": "dt_bias",
    "ssm_a": "A_log",
    "ssm_d": "D",
    "ssm_norm": "norm",
    "ssm_out": "out_proj",
}
#: Tensors of a Mamba-1 block.
_MAMBA = {
    "ssm_in": "in_proj",
    "ssm_conv1d": "conv1d",
    "ssm_x": "x_proj",
    "ssm_dt": "dt_proj",
    "ssm_a": "A_log",
    "ssm_d": "D",
    "ssm_dt_norm": "dt_layernorm",
    "ssm_b_norm": "b_layernorm",
    "ssm_c_norm": "c_layernorm",
    "ssm_out": "out_proj",
}
_ATTENTION = {f"attn_{name}": f"{name}_proj" for name in "qkv"} | {"attn_output": "o_proj"}
_MLP = {f"ffn_{name}": f"{name}_proj" for name in ("gate", "up", "down")}


def _below(prefix: str, names: dict[str, str]) -> dict[str, str]:
    return {stored: f"{prefix}.{name}" for stored, name in names.items()}


MAMBA_NAMES = {"attn_norm": "norm", **_below("mixer", _MAMBA)}
MAMBA2_NAMES = {"attn_norm": "norm", **_below("mixer", _MAMBA2)}
NEMOTRON_H_NAMES = {**MAMBA2_NAMES, **_below("mixer", _ATTENTION | _MLP)}
#: With experts, which have no gates.
NEMOTRON_H_MOE_NAMES = {
    **NEMOTRON_H_NAMES,
    "ffn_gate_inp": "mixer.gate",
    "exp_probs_b.bias": "mixer.gate.e_score_correction_bias",
    "ffn_up_exps": "mixer.experts.{}.up_proj",
    "ffn_down_exps": "mixer.experts.{}.down_proj",
    "ffn_up_shexp": "mixer.shared_experts.up_proj",
    "ffn_down_shexp": "mixer.shared_experts.down_proj",
    "ffn_latent_down": "mixer.fc1_latent_proj",
    "ffn_latent_up": "mixer.fc2_latent_proj",
}
_PRE_FF = {"attn_norm": "input_layernorm", "ffn_norm": "pre_ff_layernorm"}
FALCON_H1_NAMES = {
    **_PRE_FF,
    **_below("self_attn", _ATTENTION),
    **_below("mamba", _MAMBA2),
    **_below("feed_forward", _MLP),
}
JAMBA_NAMES = FALCON_H1_NAMES | _below("mamba", _MAMBA)
del JAMBA_NAMES["ssm_dt.bias"]
GRANITE_HYBRID_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    **_below("self_attn", _ATTENTION),
    **_below("mamba", _MAMBA2),
    "ffn_down": "shared_mlp.output_linear",
}
#: A tensor of the model → tensors of the file whose rows it consists of, in order.
GRANITE_HYBRID_FUSED = {"shared_mlp.input_linear": ("ffn_gate", "ffn_up")}
_EXPERTS = {f"ffn_{name}_exps": f"{name}_proj" for name in ("gate", "up", "down")}
JAMBA_NAMES |= {
    "ffn_gate_inp": "feed_forward.router",
    **_below("feed_forward.experts.{}", _EXPERTS),
}
#: With experts; the MLP of all tokens is then the shared expert.
GRANITE_HYBRID_MOE_NAMES = {
    **GRANITE_HYBRID_NAMES,
    "ffn_gate_inp": "block_sparse_moe.router.layer",
    **_below("block_sparse_moe.experts.{}", _EXPERTS),
    "ffn_down_shexp": "shared_mlp.output_linear",
}
GRANITE_HYBRID_MOE_FUSED = {"shared_mlp.input_linear": ("ffn_gate_shexp", "ffn_up_shexp")}
QWEN3_NEXT_NAMES = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    **_below("self_attn", _ATTENTION),
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_qkv": "linear_attn.in_proj_qkv",
    "attn_gate": "linear_attn.in_proj_z",
    "ssm_ba": "linear_attn.in_proj_ba",
    "ssm_alpha": "linear_attn.in_proj_a",
    "ssm_beta": "linear_attn.in_proj_b",
    "ssm_a": "linear_attn.A_log",
    "ssm_dt.bias": "linear_attn.dt_bias",
    "ssm_conv1d": "linear_attn.conv1d",
    "ssm_norm": "linear_attn.norm",
    "ssm_out": "linear_attn.out_proj",
    **_below("mlp", _MLP),
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    **_below("mlp.experts.{}", _EXPERTS),
    **{f"ffn_{name}_shexp": f"mlp.shared_expert.{name}_proj" for name in ("gate", "up", "down")},
}
LFM2_NAMES = {
    "attn_norm": "operator_norm",
    "ffn_norm": "ffn_norm",
    **_below("self_attn", _ATTENTION | {"attn_output": "out_proj"}),
    "attn_q_norm": "self_attn.q_layernorm",
    "attn_k_norm": "self_attn.k_layernorm",
    "shortconv.conv": "conv.conv",
    "shortconv.in_proj": "conv.in_proj",
    "shortconv.out_proj": "conv.out_proj",
    "ffn_gate": "feed_forward.w1",
    "ffn_up": "feed_forward.w3",
    "ffn_down": "feed_forward.w2",
}


LFM2_MOE_NAMES = {
    **LFM2_NAMES,
    "ffn_gate_inp": "feed_forward.gate",
    "exp_probs_b.bias": "feed_forward.expert_bias",
    "ffn_gate_exps": "feed_forward.experts.{}.w1",
    "ffn_up_exps": "feed_forward.experts.{}.w3",
    "ffn_down_exps": "feed_forward.experts.{}.w2",
}
#: Low-rank projections of RWKV 7: in the file w0 is the bias, w1 goes down, w2 goes up.
_LOW_RANK = {
    f"time_mix_{part}{stored}": f"attn.{part}_lora.lora.{name}"
    for part in "wavg"
    for stored, name in (("0.weight", "2.bias"), ("1", "0"), ("2", "2"))
}
RWKV7_NAMES = {
    "attn_norm": "attn_norm",
    "attn_norm_2": "ffn_norm",
    **_LOW_RANK,
    **{f"time_mix_{name}.weight": f"attn.{name}" for name in ("k_k", "k_a", "r_k")},
    "time_mix_receptance": "attn.r_proj",
    "time_mix_key": "attn.k_proj",
    "time_mix_value": "attn.v_proj",
    "time_mix_output": "attn.o_proj",
    "time_mix_ln": "attn.g_norm",
    "channel_mix_lerp_k.weight": "ffn.x_k",
    "channel_mix_key": "ffn.key",
    "channel_mix_value": "ffn.value",
}


def _sparse_layers(names: set[str]) -> list[int]:
    """The layers that have experts."""
    found = (re.match(r"blk\.(\d+)\.ffn_up_exps\.weight", name) for name in names)
    return sorted(int(match[1]) for match in found if match)


def _experts(meta: Fields, arch: str) -> dict[str, Any]:
    """How many experts there are, and how many a token chooses."""
    return {
        "num_experts": meta.integer(f"{arch}.expert_count", least=1),
        "num_local_experts": meta.integer(f"{arch}.expert_count", least=1),
        "num_experts_per_tok": meta.integer(f"{arch}.expert_used_count", least=1),
    }


def mamba(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    """Also Falcon Mamba, which norms b, c and the time steps."""
    config: dict[str, Any] = {
        "state_size": meta.integer(f"{arch}.ssm.state_size", least=1),
        "conv_kernel": meta.integer(f"{arch}.ssm.conv_kernel", least=2),
        "intermediate_size": meta.integer(f"{arch}.ssm.inner_size", least=1),
        "time_step_rank": meta.integer(f"{arch}.ssm.time_step_rank", least=1),
        "layer_norm_epsilon": meta.number(f"{arch}.attention.layer_norm_rms_epsilon"),
        "use_bias": "blk.0.ssm_in.bias" in names,
        "use_conv_bias": "blk.0.ssm_conv1d.bias" in names,
    }
    if meta.flag(f"{arch}.ssm.dt_b_c_rms", False):
        config |= {"architectures": ["FalconMambaForCausalLM"], "model_type": "falcon_mamba"}
        config["mixer_rms_eps"] = 1e-6  # of the checkpoints; the file does not say it
    return config


def mamba2(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    heads, inner, hidden = _mamba2_sizes(meta, arch)
    return {
        "num_heads": heads,
        "head_dim": inner // heads,
        "expand": inner // hidden,
        "n_groups": meta.integer(f"{arch}.ssm.group_count", least=1),
        "state_size": meta.integer(f"{arch}.ssm.state_size", least=1),
        "conv_kernel": meta.integer(f"{arch}.ssm.conv_kernel", least=2),
        "layer_norm_epsilon": meta.number(f"{arch}.attention.layer_norm_rms_epsilon"),
        "use_bias": "blk.0.ssm_in.bias" in names,
        "use_conv_bias": "blk.0.ssm_conv1d.bias" in names,
    }


def falcon_h1(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    return {
        **attention(meta, arch),
        **_bamba_keys(meta, arch, "blk.0"),
        "intermediate_size": meta.integer(f"{arch}.feed_forward_length", least=1),
        "mamba_conv_bias": "blk.0.ssm_conv1d.bias" in names,
        "mamba_rms_norm": "blk.0.ssm_norm.weight" in names,
        "mamba_norm_before_gate": False,
    }


def granite_hybrid(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    """Without positions; Bamba, which has the same architecture in GGUF, is refused."""
    if meta.flag(f"{arch}.rope.scaling.finetuned", False):
        raise ModelError(f"{meta.where}: Bamba is not supported in GGUF")
    kv_heads = per_layer(meta, arch, "attention.head_count_kv")
    first = next((i for i, n in enumerate(kv_heads) if not n), 0)
    shared = meta.integer(f"{arch}.expert_shared_feed_forward_length", 0)
    size = meta.integer(f"{arch}.feed_forward_length", 0) or shared
    return {
        **attention(meta, arch),
        **_bamba_keys(meta, arch, f"blk.{first}"),
        "layer_types": ["full_attention" if n else "linear_attention" for n in kv_heads],
        "num_local_experts": 0,
        "intermediate_size": 1,
        "shared_intermediate_size": size,
        "mamba_conv_bias": f"blk.{first}.ssm_conv1d.bias" in names,
        "attention_multiplier": meta.number(f"{arch}.attention.scale", 1.0),
        "embedding_multiplier": meta.number(f"{arch}.embedding_scale", 1.0),
        "residual_multiplier": meta.number(f"{arch}.residual_scale", 1.0),
        "logits_scaling": meta.number(f"{arch}.logit_scale", 1.0),
    }


def granite_hybrid_moe(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    """The MLP of all tokens has a size of its own."""
    return {
        **granite_hybrid(meta, arch, names),
        **_experts(meta, arch),
        "intermediate_size": meta.integer(f"{arch}.feed_forward_length", least=1),
        "shared_intermediate_size": meta.integer(
            f"{arch}.expert_shared_feed_forward_length", least=1
        ),
    }


def qwen3_next(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    """Also Qwen3.5, with or without experts, whose value heads are stored key head by key head."""
    layers = meta.integer(f"{arch}.block_count", least=1, most=MAX_LAYERS)
    layers -= meta.integer(f"{arch}.nextn_predict_layers", 0)
    each = meta.integer(f"{arch}.full_attention_interval", 4, least=1)
    heads = meta.integer(f"{arch}.ssm.time_step_rank", least=1)
    inner = meta.integer(f"{arch}.ssm.inner_size", least=1)
    if inner % heads:
        raise ModelError(f"{meta.where}: {arch}.ssm.inner_size is no multiple of {heads} heads")
    config = {
        **attention(meta, arch),
        "num_hidden_layers": layers,
        "layer_types": [
            "linear_attention" if (i + 1) % each else "full_attention" for i in range(layers)
        ],
        "intermediate_size": meta.integer(f"{arch}.feed_forward_length", 1) or 1,
        "linear_num_key_heads": meta.integer(f"{arch}.ssm.group_count", least=1),
        "linear_num_value_heads": heads,
        "linear_key_head_dim": meta.integer(f"{arch}.ssm.state_size", least=1),
        "linear_value_head_dim": inner // heads,
        "linear_conv_kernel_dim": meta.integer(f"{arch}.ssm.conv_kernel", least=2),
        "split_qkvz": True,
        "value_heads_in_turn": arch != "qwen3next",
        "num_experts": 0,
    }
    sparse = _sparse_layers(names)
    if not sparse:
        return config
    size = meta.integer(f"{arch}.expert_feed_forward_length", least=1)
    shared = f"{arch}.expert_shared_feed_forward_length"
    return {
        **config,
        **_experts(meta, arch),
        "moe_intermediate_size": size,
        "shared_expert_intermediate_size": meta.integer(shared, size, least=1),
        "mlp_only_layers": [i for i in range(layers) if i not in sparse],
    }


def nemotron_h(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    heads, inner, _ = _mamba2_sizes(meta, arch)
    kv_heads = per_layer(meta, arch, "attention.head_count_kv")
    feed_forward = per_layer(meta, arch, "feed_forward_length")
    kinds = [
        "full_attention" if n else "mlp" if size else "linear_attention"
        for n, size in zip(kv_heads, feed_forward, strict=True)
    ]
    return {
        **attention(meta, arch),
        "layers_block_type": kinds,
        "intermediate_size": max(feed_forward, default=0) or 1,
        "layer_norm_epsilon": _nemotron_epsilon(meta, arch),
        "mamba_num_heads": heads,
        "mamba_head_dim": inner // heads,
        "n_groups": meta.integer(f"{arch}.ssm.group_count", least=1),
        "ssm_state_size": meta.integer(f"{arch}.ssm.state_size", least=1),
        "conv_kernel": meta.integer(f"{arch}.ssm.conv_kernel", least=2),
        "use_bias": any(name.endswith("ssm_in.bias") for name in names),
        "use_conv_bias": any(name.endswith("ssm_conv1d.bias") for name in names),
        "mlp_bias": any(name.endswith("ffn_up.bias") for name in names),
    }


def nemotron_h_moe(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    """Layers with a feed-forward size have experts; the last ones, which predict further tokens,
    are left out."""
    config = nemotron_h(meta, arch, names)
    size = f"{arch}.expert_feed_forward_length"
    if isinstance(meta.values.get(size), np.ndarray):
        raise ModelError(f"{meta.where}: {size} differs between layers, which is not supported")
    kinds = ["moe" if kind == "mlp" else kind for kind in config["layers_block_type"]]
    further = meta.integer(f"{arch}.nextn_predict_layers", 0, most=len(kinds) - 1)
    return {
        **config,
        "layers_block_type": kinds[: len(kinds) - further],
        "num_local_experts": meta.integer(f"{arch}.expert_count", least=1),
        "num_experts_per_tok": meta.integer(f"{arch}.expert_used_count", least=1),
        "moe_intermediate_size": meta.integer(size, config["intermediate_size"], least=1),
        "moe_shared_expert_intermediate_size": meta.integer(
            f"{arch}.expert_shared_feed_forward_length", 0
        ),
        "moe_latent_size": meta.integer(f"{arch}.moe_latent_size", 0) or None,
        "n_group": meta.integer(f"{arch}.expert_group_count", 1) or 1,
        "topk_group": meta.integer(f"{arch}.expert_group_used_count", 1) or 1,
        "norm_topk_prob": meta.flag(f"{arch}.expert_weights_norm", False),
        "routed_scaling_factor": meta.number(f"{arch}.expert_weights_scale", 1.0) or 1.0,
        "mlp_bias": any(".ffn_latent" in n and n.endswith(".bias") for n in names),
    }


def _nemotron_epsilon(meta: Fields, arch: str) -> float:
    """Of newer files under the name of layer norms."""
    rms, layer = (f"{arch}.attention.layer_norm_{name}" for name in ("rms_epsilon", "epsilon"))
    return meta.number(rms if meta.has(rms) else layer)


def jamba(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    kv_heads = per_layer(meta, arch, "attention.head_count_kv")
    hidden = meta.integer(f"{arch}.embedding_length", least=1)
    return {
        **attention(meta, arch),
        "layers_block_type": ["full_attention" if n else "linear_attention" for n in kv_heads],
        **_jamba_experts(meta, arch, names),
        "intermediate_size": meta.integer(f"{arch}.feed_forward_length", least=1),
        "mamba_expand": meta.integer(f"{arch}.ssm.inner_size", least=1) // hidden,
        "mamba_d_state": meta.integer(f"{arch}.ssm.state_size", least=1),
        "mamba_d_conv": meta.integer(f"{arch}.ssm.conv_kernel", least=2),
        "mamba_dt_rank": meta.integer(f"{arch}.ssm.time_step_rank", least=1),
        "mamba_conv_bias": any(name.endswith("ssm_conv1d.bias") for name in names),
        "mamba_proj_bias": any(name.endswith("ssm_in.bias") for name in names),
    }


def _jamba_experts(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    """Layers with experts are at equal distances."""
    sparse, layers = _sparse_layers(names), meta.integer(f"{arch}.block_count", least=1)
    if not sparse:
        return {"num_experts": 1}
    offset, period = sparse[0], sparse[1] - sparse[0] if len(sparse) > 1 else layers
    if sparse != list(range(offset, layers, period)) or offset >= period:
        raise ModelError(f"{meta.where}: layers {sparse} have experts, at unequal distances")
    return {
        **_experts(meta, arch),
        "expert_layer_offset": offset,
        "expert_layer_period": period,
    }


def lfm2_moe(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    function = meta.integer(f"{arch}.expert_gating_func", 2)
    if function != 2:
        raise ModelError(f"{meta.where}: {arch}.expert_gating_func {function} is not supported")
    return {
        **lfm2(meta, arch, names),
        **_experts(meta, arch),
        "moe_intermediate_size": meta.integer(f"{arch}.expert_feed_forward_length", least=1),
        "num_dense_layers": meta.integer(f"{arch}.leading_dense_block_count", 0),
        "norm_topk_prob": True,
        "use_expert_bias": any("exp_probs_b" in name for name in names),
    }


def lfm2(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    kv_heads = per_layer(meta, arch, "attention.head_count_kv")
    return {
        **attention(meta, arch),
        "layer_types": ["full_attention" if n else "conv" for n in kv_heads],
        "intermediate_size": meta.integer(f"{arch}.feed_forward_length", least=1),
        "block_auto_adjust_ff_dim": False,
        "conv_L_cache": meta.integer(f"{arch}.shortconv.l_cache", least=2),
        "conv_bias": any("shortconv" in name and name.endswith(".bias") for name in names),
        "norm_eps": meta.number(f"{arch}.attention.layer_norm_rms_epsilon"),
    }


def rwkv7(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    ranks = f"{arch}.attention.{{}}_lora_rank"
    return {
        "head_dim": meta.integer(f"{arch}.wkv.head_size", least=2),
        "intermediate_size": meta.integer(f"{arch}.feed_forward_length", least=1),
        "decay_low_rank_dim": meta.integer(ranks.format("decay"), least=1),
        "a_low_rank_dim": meta.integer(ranks.format("iclr"), least=1),
        "v_low_rank_dim": meta.integer(ranks.format("value_residual_mix"), least=1),
        "gate_low_rank_dim": meta.integer(ranks.format("gate"), least=1),
        "hidden_act": "sqrelu",
    }


def attention(meta: Fields, arch: str) -> dict[str, Any]:
    """Heads of the layers that attend."""
    kv_heads = {n for n in per_layer(meta, arch, "attention.head_count_kv") if n}
    heads = {n for n in per_layer(meta, arch, "attention.head_count") if n}
    if len(kv_heads) > 1 or len(heads) != 1:
        raise ModelError(f"{meta.where}: layers with different heads are not supported")
    [count] = heads
    hidden = meta.integer(f"{arch}.embedding_length", least=1)
    return {
        "num_attention_heads": count,
        "num_key_value_heads": next(iter(kv_heads), count),
        "head_dim": meta.integer(f"{arch}.attention.key_length", hidden // count, least=2),
    }


def per_layer(meta: Fields, arch: str, key: str) -> list[int]:
    """A number of each layer, which may be written once."""
    layers = meta.integer(f"{arch}.block_count", least=1, most=MAX_LAYERS)
    value = meta.values.get(f"{arch}.{key}")
    if isinstance(value, np.ndarray):
        if value.shape != (layers,) or value.dtype.kind not in "iu" or (value < 0).any():
            raise ModelError(f"{meta.where}: {arch}.{key} is not a number for each layer")
        return [int(n) for n in value]
    return [meta.integer(f"{arch}.{key}")] * layers


def layer_types(meta: Fields, arch: str) -> dict[str, Any]:
    """`layer_types` of the config, where the file says of each layer whether it has a window."""
    slides = meta.values.get(f"{arch}.attention.sliding_window_pattern")
    if not isinstance(slides, np.ndarray):
        return {}
    kinds = ["sliding_attention" if slide else "full_attention" for slide in slides]
    return {"layer_types": kinds}


def _mamba2_sizes(meta: Fields, arch: str) -> tuple[int, int, int]:
    """Heads, inner and hidden size."""
    heads = meta.integer(f"{arch}.ssm.time_step_rank", least=1)
    inner = meta.integer(f"{arch}.ssm.inner_size", least=1)
    if inner % heads:
        raise ModelError(f"{meta.where}: {arch}.ssm.inner_size is no multiple of {heads} heads")
    return heads, inner, meta.integer(f"{arch}.embedding_length", least=1)


def _bamba_keys(meta: Fields, arch: str, layer: str) -> dict[str, Any]:
    heads, inner, _ = _mamba2_sizes(meta, arch)
    return {
        "mamba_d_ssm": inner,
        "mamba_n_heads": heads,
        "mamba_n_groups": meta.integer(f"{arch}.ssm.group_count", least=1),
        "mamba_d_state": meta.integer(f"{arch}.ssm.state_size", least=1),
        "mamba_d_conv": meta.integer(f"{arch}.ssm.conv_kernel", least=2),
    }


def logical_shape(name: str, shape: tuple[int, ...], config: Fields) -> tuple[int, ...]:
    """The shape that models ask for, of a tensor by Hugging Face's name."""
    if name.endswith(("conv1d.weight", "conv.conv.weight")):  # of two, three or four axes
        return (math.prod(shape[:-1]), 1, shape[-1])
    if name.endswith(".self_attn.A_log"):  # of Kimi Linear
        return (1, 1, math.prod(shape), 1)
    if name.endswith(".ffn.x_k"):  # of RWKV 7
        return (math.prod(shape),)
    if name.endswith(".attn.r_k"):
        size = config.integer("head_dim", 64, least=1)
        return shape if math.prod(shape) % size else (math.prod(shape) // size, size)
    if len(shape) == 2 and (
        name.endswith((".mamba.norm.weight", ".mixer.norm.weight"))
        or (name.endswith((".A_log", ".D")) and shape[1] == 1)
    ):
        return (shape[0] * shape[1],)
    return shape


def logical_values(name: str, values: np.ndarray) -> np.ndarray:
    """The values that models ask for, of a tensor by Hugging Face's name."""
    if not name.endswith(".A_log"):
        return values
    with np.errstate(divide="ignore", invalid="ignore"):
        logs: np.ndarray = np.log(-values.astype(np.float32))
    return logs


_BACKBONE = {
    "token_embd": "backbone.embeddings",
    "output_norm": "backbone.norm_f",
    "output": "lm_head",
}
_LFM2_TOP = {
    **LLAMA_TOP,
    **dict.fromkeys(("token_embd_norm", "output_norm"), "model.embedding_norm"),
}

_GRANITE_HYBRID = Architecture(
    "GraniteMoeHybridForCausalLM",
    "granitemoehybrid",
    interleaved_qk=True,
    in_layer=GRANITE_HYBRID_NAMES,
    fused=GRANITE_HYBRID_FUSED,
    config=granite_hybrid,
)
_QWEN3_NEXT = Architecture(
    "Qwen3NextForCausalLM",
    "qwen3_next",
    in_layer=QWEN3_NEXT_NAMES,
    norm_plus=1.0,
    plain_norms=(".linear_attn.norm.weight",),
    config=qwen3_next,
)

ARCHITECTURES: dict[str, Architecture] = {
    "falcon-h1": Architecture(
        "FalconH1ForCausalLM",
        "falcon_h1",
        top=FINAL_LAYERNORM,
        in_layer=FALCON_H1_NAMES,
        config=falcon_h1,
    ),
    "granitehybrid": replace(
        _GRANITE_HYBRID,
        where=(
            "blk.0.ffn_gate_exps.weight",
            replace(
                _GRANITE_HYBRID,
                in_layer=GRANITE_HYBRID_MOE_NAMES,
                fused=GRANITE_HYBRID_MOE_FUSED,
                config=granite_hybrid_moe,
            ),
        ),
    ),
    "jamba": Architecture(
        "JambaForCausalLM",
        "jamba",
        top=FINAL_LAYERNORM,
        in_layer=JAMBA_NAMES,
        config=jamba,
    ),
    "lfm2": Architecture(
        "Lfm2ForCausalLM",
        "lfm2",
        top=_LFM2_TOP,
        in_layer=LFM2_NAMES,
        config=lfm2,
    ),
    "lfm2moe": Architecture(
        "Lfm2MoeForCausalLM", "lfm2_moe", top=_LFM2_TOP, in_layer=LFM2_MOE_NAMES, config=lfm2_moe
    ),
    "mamba": Architecture(
        "MambaForCausalLM",
        "mamba",
        top=_BACKBONE,
        in_layer=MAMBA_NAMES,
        layers="backbone.layers",
        config=mamba,
    ),
    "mamba2": Architecture(
        "Mamba2ForCausalLM",
        "mamba2",
        top=_BACKBONE,
        in_layer=MAMBA2_NAMES,
        layers="backbone.layers",
        config=mamba2,
    ),
    "qwen35": replace(_QWEN3_NEXT, hf_class="Qwen3_5ForCausalLM", model_type="qwen3_5_text"),
    "qwen35moe": replace(
        _QWEN3_NEXT, hf_class="Qwen3_5MoeForCausalLM", model_type="qwen3_5_moe_text"
    ),
    "qwen3next": _QWEN3_NEXT,
    "nemotron_h_moe": Architecture(
        "NemotronHForCausalLM",
        "nemotron_h",
        interleaved_qk=True,
        top=_BACKBONE,
        in_layer=NEMOTRON_H_MOE_NAMES,
        layers="backbone.layers",
        config=nemotron_h_moe,
    ),
    "nemotron_h": Architecture(
        "NemotronHForCausalLM",
        "nemotron_h",
        interleaved_qk=True,
        top=_BACKBONE,
        in_layer=NEMOTRON_H_NAMES,
        layers="backbone.layers",
        config=nemotron_h,
    ),
    "rwkv7": Architecture(
        "RWKV7ForCausalLM",
        "rwkv7",
        top={
            **LLAMA_TOP,
            "token_embd": "model.embeddings",
            "token_embd_norm": "model.layers.0.pre_norm",
        },
        in_layer=RWKV7_NAMES,
        split={"time_mix_lerp_fused.weight": tuple(f"attn.x_{part}" for part in "rwkvag")},
        config=rwkv7,
    ),
}
