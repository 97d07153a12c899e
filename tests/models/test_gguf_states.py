"""Families with recurrent states from GGUF: the logits are those of transformers.

Files are written as llama.cpp's converter does, tensors named by the `gguf` package.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from galley.kernels.cpu import CpuBackend
from galley.loader.gguf_checkpoint import GGUFCheckpoint
from tests.loader.gguf_files import finish
from tests.models.checkpoints import Case, StateDict, hf_logits, make
from tests.models.driver import LIMITS, load, solo_logits
from tests.models.families import FAMILIES, VARIANTS

IDS = np.random.default_rng(1).integers(0, 131, 60)
Tensors = dict[str, np.ndarray]
Writer = gguf.GGUFWriter


def mamba_keys(writer: Writer, c: Any) -> None:
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_ssm_inner_size(c.intermediate_size)
    writer.add_ssm_state_size(c.state_size)
    writer.add_ssm_conv_kernel(c.conv_kernel)
    writer.add_ssm_time_step_rank(c.time_step_rank)
    writer.add_layer_norm_rms_eps(c.layer_norm_epsilon)
    writer.add_ssm_dt_b_c_rms(c.model_type == "falcon_mamba")


def mamba2_keys(writer: Writer, c: Any) -> None:
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    ssm_keys(writer, c.num_heads * c.head_dim, c.num_heads, c.n_groups, c.state_size, c.conv_kernel)
    writer.add_layer_norm_rms_eps(c.layer_norm_epsilon)


def ssm_keys(writer: Writer, inner: int, heads: int, groups: int, state: int, taps: int) -> None:
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_time_step_rank(heads)
    writer.add_ssm_group_count(groups)
    writer.add_ssm_state_size(state)
    writer.add_ssm_conv_kernel(taps)


def attention_keys(writer: Writer, c: Any, kinds: list[str] | None = None) -> None:
    kv = c.num_key_value_heads
    writer.add_head_count(c.num_attention_heads)
    counts = [kv if kind in ("full_attention", "attention") else 0 for kind in kinds or ()]
    writer.add_head_count_kv(counts or kv)
    writer.add_rope_freq_base((getattr(c, "rope_parameters", None) or {}).get("rope_theta", 1e4))


def bamba_keys(writer: Writer, c: Any) -> None:
    inner = getattr(c, "mamba_d_ssm", None) or c.mamba_expand * c.hidden_size
    ssm_keys(writer, inner, c.mamba_n_heads, c.mamba_n_groups, c.mamba_d_state, c.mamba_d_conv)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)


def falcon_h1_keys(writer: Writer, c: Any) -> None:
    attention_keys(writer, c)
    bamba_keys(writer, c)
    writer.add_key_length(c.hidden_size // c.num_attention_heads)
    writer.add_value_length(c.hidden_size // c.num_attention_heads)
    writer.add_feed_forward_length(c.intermediate_size)


def granite_keys(writer: Writer, c: Any) -> None:
    attention_keys(writer, c, c.layer_types)
    bamba_keys(writer, c)
    writer.add_feed_forward_length(
        c.intermediate_size if c.num_local_experts else c.shared_intermediate_size
    )
    writer.add_expert_shared_feed_forward_length(c.shared_intermediate_size)
    writer.add_attention_scale(c.attention_multiplier)
    writer.add_embedding_scale(c.embedding_multiplier)
    writer.add_residual_scale(c.residual_multiplier)
    writer.add_logit_scale(c.logits_scaling)
    writer.add_rope_scaling_finetuned(False)


def jamba_keys(writer: Writer, c: Any) -> None:
    attention_keys(writer, c, c.layers_block_type)
    writer.add_ssm_inner_size(c.mamba_expand * c.hidden_size)
    writer.add_ssm_state_size(c.mamba_d_state)
    writer.add_ssm_conv_kernel(c.mamba_d_conv)
    writer.add_ssm_time_step_rank(c.mamba_dt_rank)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_feed_forward_length(c.intermediate_size)


def expert_keys(writer: Writer, c: Any) -> None:
    writer.add_expert_count(getattr(c, "num_experts", None) or c.num_local_experts)
    writer.add_expert_used_count(c.num_experts_per_tok)


def granite_moe_keys(writer: Writer, c: Any) -> None:
    granite_keys(writer, c)
    expert_keys(writer, c)


def jamba_moe_keys(writer: Writer, c: Any) -> None:
    jamba_keys(writer, c)
    expert_keys(writer, c)


def lfm2_moe_keys(writer: Writer, c: Any) -> None:
    attention_keys(writer, c, c.layer_types)
    writer.add_layer_norm_rms_eps(c.norm_eps)
    writer.add_shortconv_l_cache(c.conv_L_cache)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_leading_dense_block_count(c.num_dense_layers)
    writer.add_expert_feed_forward_length(c.moe_intermediate_size)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    expert_keys(writer, c)


def qwen3_next_keys(writer: Writer, c: Any) -> None:
    attention_keys(writer, c)
    writer.add_key_length(c.head_dim)
    writer.add_value_length(c.head_dim)
    writer.add_rope_dimension_count(c.head_dim // 4)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_ssm_conv_kernel(c.linear_conv_kernel_dim)
    writer.add_ssm_state_size(c.linear_key_head_dim)
    writer.add_ssm_group_count(c.linear_num_key_heads)
    writer.add_ssm_time_step_rank(c.linear_num_value_heads)
    writer.add_ssm_inner_size(c.linear_value_head_dim * c.linear_num_value_heads)
    writer.add_full_attention_interval(2)
    writer.add_feed_forward_length(getattr(c, "intermediate_size", None) or 1)
    if "next" not in c.model_type:
        writer.add_rope_dimension_sections([2, 1, 1, 0])
    if getattr(c, "num_experts", 0):
        writer.add_expert_feed_forward_length(c.moe_intermediate_size)
        writer.add_expert_shared_feed_forward_length(c.shared_expert_intermediate_size)
        expert_keys(writer, c)


def lfm2_keys(writer: Writer, c: Any) -> None:
    attention_keys(writer, c, c.layer_types)
    writer.add_layer_norm_rms_eps(c.norm_eps)
    writer.add_shortconv_l_cache(c.conv_L_cache)
    size, multiple = int(2 * c.intermediate_size / 3), c.block_multiple_of
    writer.add_feed_forward_length(-(-size // multiple) * multiple)


def nemotron_keys(writer: Writer, c: Any) -> None:
    attention_keys(writer, c, c.layers_block_type)
    inner = c.mamba_num_heads * c.mamba_head_dim
    ssm_keys(writer, inner, c.mamba_num_heads, c.n_groups, c.ssm_state_size, c.conv_kernel)
    writer.add_layer_norm_eps(c.layer_norm_epsilon)
    sizes = [c.intermediate_size if kind == "mlp" else 0 for kind in c.layers_block_type]
    writer.add_feed_forward_length(sizes)
    writer.add_key_length(c.head_dim)
    writer.add_value_length(c.head_dim)


def nemotron_moe_keys(writer: Writer, c: Any) -> None:
    nemotron_keys(writer, c)
    sizes = [c.moe_intermediate_size if kind == "moe" else 0 for kind in c.layers_block_type]
    writer.add_feed_forward_length(sizes)
    writer.add_expert_count(c.n_routed_experts)
    writer.add_expert_used_count(c.num_experts_per_tok)
    writer.add_expert_feed_forward_length(c.moe_intermediate_size)
    writer.add_expert_shared_feed_forward_length(c.moe_shared_expert_intermediate_size)
    writer.add_expert_weights_norm(c.norm_topk_prob)
    writer.add_expert_weights_scale(c.routed_scaling_factor)
    writer.add_expert_group_count(c.n_group)
    writer.add_moe_latent_size(c.moe_latent_size)


def stacked_experts(c: Any, tensors: Tensors) -> Tensors:
    """Nemotron-H: each layer's experts in one tensor."""
    result: Tensors = {}
    for name, values in tensors.items():
        found = re.fullmatch(r"backbone(\.layers\.\d+\.)mixer(\.experts)\.(\d+)(\..+)", name)
        if found is None:
            result[name.replace("e_score_correction_bias", "e_score_correction.bias")] = values
        elif found[3] == "0":
            named = [
                name.replace(".experts.0.", f".experts.{i}.") for i in range(c.n_routed_experts)
            ]
            stored = f"model{found[1]}mlp{found[2]}{found[4]}"
            result[stored] = np.stack([tensors[n] for n in named])
    return result


def multiplied(c: Any, tensors: Tensors) -> Tensors:
    """Falcon-H1: its multipliers are part of the weights."""
    z, x, b, cc, dt = c.ssm_multipliers
    bc = c.mamba_n_groups * c.mamba_d_state
    sizes = [c.mamba_d_ssm, c.mamba_d_ssm, bc, bc, c.mamba_n_heads]
    factors: dict[str, Any] = {
        "down_proj": c.mlp_multipliers[1],
        "gate_proj": c.mlp_multipliers[0],
        "k_proj": c.key_multiplier * c.attention_in_multiplier,
        "q_proj": c.attention_in_multiplier,
        "v_proj": c.attention_in_multiplier,
        "o_proj": c.attention_out_multiplier,
        "out_proj": c.ssm_out_multiplier,
        "in_proj": c.ssm_in_multiplier * np.repeat([z, x, b, cc, dt], sizes)[:, None],
        "lm_head": c.lm_head_multiplier,
        "embed_tokens": c.embedding_multiplier,
    }

    def factor(name: str) -> Any:
        return factors.get(name.removesuffix(".weight").rpartition(".")[2], 1.0)

    return {name: np.float32(values * factor(name)) for name, values in tensors.items()}


def permuted(c: Any, tensors: Tensors) -> Tensors:
    """Granite: rows of q and k in pairs, gate and up apart."""
    result = {}
    for name, values in tensors.items():
        heads = {"q_proj": c.num_attention_heads, "k_proj": c.num_key_value_heads}
        count = heads.get(name.removesuffix(".weight").rpartition(".")[2])
        if count:
            halves = values.reshape(count, 2, -1, values.shape[1]).swapaxes(1, 2)
            values = halves.reshape(values.shape)
        if name.endswith("shared_mlp.input_linear.weight"):
            layer = name.partition(".shared_mlp")[0]
            for part, rows in zip(("gate", "up"), np.split(values, 2), strict=True):
                result[f"{layer}.mlp.{part}_proj.weight"] = rows
            continue
        result[name.replace("shared_mlp.output_linear", "mlp.down_proj")] = values
    return result


def with_experts(c: Any, tensors: Tensors) -> Tensors:
    """The experts of a layer as one tensor for each of their matrices."""
    result: dict[str, Any] = {}
    spellings = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
    for name, values in tensors.items():
        layer, found, rest = name.partition(".experts.")
        matrix = rest.removesuffix(".weight").rpartition(".")[2]
        if found and matrix == "gate_up_proj":
            for part, of_all in zip(("gate", "up"), np.split(values, 2, 1), strict=True):
                result[f"{layer}.experts.{part}_proj.weight"] = of_all
        elif found and rest[0].isdigit():
            stored = f"{layer}.experts.{spellings.get(matrix, matrix)}.weight"
            result.setdefault(stored, []).append(values)
        elif found:
            result[f"{name}.weight"] = values
        else:
            result[f"{name}.bias" if name.endswith("expert_bias") else name] = values
    return {name: np.stack(t) if isinstance(t, list) else t for name, t in result.items()}


def granite_moe(c: Any, tensors: Tensors) -> Tensors:
    result = {}
    for name, values in permuted(c, tensors).items():
        layer = name.partition(".block_sparse_moe")[0]
        if name.endswith("input_linear.weight"):
            for part, of_all in zip(("gate", "up"), np.split(values, 2, 1), strict=True):
                result[f"{layer}.mlp.experts.{part}_proj.weight"] = of_all
        elif name.endswith("block_sparse_moe.output_linear.weight"):
            result[f"{layer}.mlp.experts.down_proj.weight"] = values
        else:
            result[name.replace(".mlp.", ".mlp.shared_experts.")] = values
    return result


def delta_nets(c: Any, tensors: Tensors) -> Tensors:
    """Qwen3-Next: all q, then all k, v, and z apart; Qwen3.5: value heads in turn. Both: 1 added
    to the norms."""
    keys, heads = c.linear_num_key_heads, c.linear_num_value_heads
    each, size = heads // keys, c.linear_value_head_dim
    qk = 2 * keys * c.linear_key_head_dim

    def in_turn(values: np.ndarray, size: int, axis: int = 0) -> np.ndarray:
        shape = values.shape
        split = values.reshape(*shape[:axis], keys, each, size, *shape[axis + 1 :])
        return split.swapaxes(axis, axis + 1).reshape(shape)

    result = {}
    for name, values in with_experts(c, tensors).items():
        if name.endswith("norm.weight") and not name.endswith("linear_attn.norm.weight"):
            values = values + np.float32(1)
        if name.endswith("in_proj_qkvz.weight"):
            by_head = values.reshape(keys, -1, values.shape[1])
            ends = np.cumsum([c.linear_key_head_dim, c.linear_key_head_dim, each * size])
            *qkv, z = (p.reshape(-1, values.shape[1]) for p in np.split(by_head, ends, 1))
            result[name.replace("qkvz", "qkv")] = np.concatenate(qkv)
            result[name.replace("qkvz", "z")] = z
            continue
        if "next" not in c.model_type and "linear_attn." in name:
            last = name.partition("linear_attn.")[2].removesuffix(".weight")
            if last in ("in_proj_qkv", "conv1d"):
                values = np.concatenate([values[:qk], in_turn(values[qk:], size)])
            elif last == "in_proj_z":
                values = in_turn(values, size)
            elif last in ("in_proj_a", "in_proj_b", "A_log", "dt_bias"):
                values = in_turn(values, 1)
            elif last == "out_proj":
                values = in_turn(values, size, axis=1)
        result[name] = values
    return result


def kimi_keys(writer: Writer, c: Any) -> None:
    writer.add_head_count(c.num_attention_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_head_count_kv([int(kind == "full_attention") for kind in c.layer_types])
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_ssm_conv_kernel(c.linear_conv_kernel_dim)
    writer.add_kda_head_dim(c.linear_head_dim)
    writer.add_kv_lora_rank(c.kv_lora_rank)
    writer.add_rope_dimension_count(c.qk_rope_head_dim)
    writer.add_key_length(c.kv_lora_rank + c.qk_rope_head_dim)
    writer.add_value_length(c.kv_lora_rank)
    writer.add_key_length_mla(c.qk_nope_head_dim + c.qk_rope_head_dim)
    writer.add_value_length_mla(c.v_head_dim)
    writer.add_expert_count(c.num_experts)
    writer.add_expert_used_count(c.num_experts_per_token)
    writer.add_expert_feed_forward_length(c.moe_intermediate_size)
    writer.add_expert_shared_count(c.num_shared_experts)
    writer.add_leading_dense_block_count(c.mlp_layer_types.count("dense"))
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_expert_weights_scale(c.routed_scaling_factor)


def kimi(c: Any, tensors: Tensors) -> Tensors:
    """Latents by head, experts in one tensor, convolutions of four axes."""
    result: dict[str, Any] = {}
    for name, values in tensors.items():
        name = re.sub(r"block_sparse_moe\.(gate|up|down)_proj", r"mlp.\1_proj", name)
        name = name.replace("e_score_correction_bias", "e_score_correction.bias")
        if re.search(r"experts\.\d", name):
            result.setdefault(re.sub(r"experts\.\d+", "experts", name), []).append(values)
        elif "conv1d" in name:
            result[name] = values.reshape(1, len(values), 1, -1)
        elif "kv_b_proj" in name:
            each = values.reshape(c.num_attention_heads, -1, c.kv_lora_rank)
            keys = each[:, : c.qk_nope_head_dim].swapaxes(1, 2)
            result[name.replace("kv_b_proj", "k_b_proj")] = keys
            result[name.replace("kv_b_proj", "v_b_proj")] = each[:, c.qk_nope_head_dim :]
        else:
            result[name] = values
    return {name: np.stack(t) if isinstance(t, list) else t for name, t in result.items()}


def rwkv7_keys(writer: Writer, c: Any) -> None:
    writer.add_head_count(0)
    writer.add_layer_norm_eps(c.norm_eps)
    writer.add_wkv_head_size(c.head_dim)
    writer.add_decay_lora_rank(c.decay_low_rank_dim)
    writer.add_iclr_lora_rank(c.a_low_rank_dim)
    writer.add_value_residual_mix_lora_rank(c.v_low_rank_dim)
    writer.add_gate_lora_rank(c.gate_low_rank_dim)
    writer.add_feed_forward_length(c.intermediate_size)


def rwkv7(c: Any, tensors: Tensors) -> Tensors:
    """Mixtures of a layer in one tensor, and projections for the mixture of values, which are not
    used, in the first layer too."""
    spellings = {".attn.": ".attention.", ".ffn.": ".feed_forward.", ".ffn_norm.": ".ln2."}
    spellings |= {".attn_norm.": ".attention_norm.", ".g_norm.": ".ln_x."}
    low_rank = {".0.weight": "1.weight", ".2.weight": "2.weight", ".2.bias": "0.weight"}
    result: Tensors = {}
    for name, values in tensors.items():
        for ours, theirs in spellings.items():
            name = name.replace(ours, theirs)
        layer, is_block, part = name.partition(".attention.")
        if is_block and part.startswith("x_"):
            mixed = f"blk.{layer.rpartition('.')[2]}.time_mix_lerp_fused.weight"
            result[mixed] = np.stack([*result.get(mixed, ()), values])
            continue
        if "_lora" in part:
            part = part[0] + low_rank[part.partition("lora.lora")[2]]
            name = f"{layer}.attention.{part}"
            if part[0] == "a" and layer.endswith(".0"):
                result[f"{layer}.attention.v{part[1:]}"] = values
        plain = not name.endswith((".weight", ".bias"))
        result[f"{name}.weight" if plain else name] = values.reshape(-1) if plain else values
    return result


def unchanged(c: Any, tensors: Tensors) -> Tensors:
    return tensors


def changed(name: str, **config: Any) -> Case:
    return replace(FAMILIES[name], config=FAMILIES[name].config | config)


#: As llama.cpp computes them: weights that sum to 1, no factor, experts in all layers.
KIMI = changed("kimi-linear", linear_num_heads=4, num_expert_group=1, topk_group=1)
LFM2_MOE = changed("lfm2-moe", norm_topk_prob=True, routed_scaling_factor=1.0)
#: llama.cpp has values as long as keys.
EQUAL = {"linear_value_head_dim": 16}
QWEN3_NEXT = changed("qwen3-next", mlp_only_layers=[], **EQUAL)
DENSE_JAMBA = replace(FAMILIES["jamba"], config=FAMILIES["jamba"].config | {"num_experts": 1})
#: llama.cpp knows no groups of them here, and no layer without experts.
NEMOTRON_MOE = replace(
    VARIANTS["nemotron-h-latent-experts"],
    config=VARIANTS["nemotron-h-latent-experts"].config
    | {
        "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"],
        "n_group": 1,
        "topk_group": 1,
        "mlp_bias": False,
    },
)
#: Case, architecture in GGUF, keys, and what is done to all tensors.
FILES: dict[str, tuple[Case, gguf.MODEL_ARCH, Callable[..., None], Callable[..., Tensors]]] = {
    "falcon-h1": (
        *(FAMILIES["falcon-h1"], gguf.MODEL_ARCH.FALCON_H1),
        *(falcon_h1_keys, multiplied),
    ),
    "falcon-mamba": (FAMILIES["falcon-mamba"], gguf.MODEL_ARCH.MAMBA, mamba_keys, unchanged),
    "granite-hybrid": (
        *(VARIANTS["granite-hybrid-dense"], gguf.MODEL_ARCH.GRANITE_HYBRID),
        *(granite_keys, permuted),
    ),
    "granite-hybrid-moe": (
        *(FAMILIES["granite-hybrid"], gguf.MODEL_ARCH.GRANITE_HYBRID),
        *(granite_moe_keys, granite_moe),
    ),
    "jamba-moe": (FAMILIES["jamba"], gguf.MODEL_ARCH.JAMBA, jamba_moe_keys, with_experts),
    "kimi-linear": (KIMI, gguf.MODEL_ARCH.KIMI_LINEAR, kimi_keys, kimi),
    "lfm2-moe": (LFM2_MOE, gguf.MODEL_ARCH.LFM2MOE, lfm2_moe_keys, with_experts),
    "qwen3-next": (QWEN3_NEXT, gguf.MODEL_ARCH.QWEN3NEXT, qwen3_next_keys, delta_nets),
    "qwen3.5": (changed("qwen3.5", **EQUAL), gguf.MODEL_ARCH.QWEN35, qwen3_next_keys, delta_nets),
    "qwen3.5-moe": (
        *(changed("qwen3.5-moe", **EQUAL), gguf.MODEL_ARCH.QWEN35MOE),
        *(qwen3_next_keys, delta_nets),
    ),
    "jamba": (DENSE_JAMBA, gguf.MODEL_ARCH.JAMBA, jamba_keys, unchanged),
    "lfm2": (FAMILIES["lfm2"], gguf.MODEL_ARCH.LFM2, lfm2_keys, unchanged),
    "mamba": (FAMILIES["mamba"], gguf.MODEL_ARCH.MAMBA, mamba_keys, unchanged),
    "mamba2": (FAMILIES["mamba2"], gguf.MODEL_ARCH.MAMBA2, mamba2_keys, unchanged),
    "nemotron-h-moe": (
        *(NEMOTRON_MOE, gguf.MODEL_ARCH.NEMOTRON_H_MOE),
        *(nemotron_moe_keys, stacked_experts),
    ),
    "nemotron-h": (
        *(FAMILIES["nemotron-h"], gguf.MODEL_ARCH.NEMOTRON_H),
        *(nemotron_keys, unchanged),
    ),
    "rwkv7": (FAMILIES["rwkv7"], gguf.MODEL_ARCH.RWKV7, rwkv7_keys, rwkv7),
}


def write(path: Path, name: str, model: torch.nn.Module) -> None:
    _, arch, keys, change = FILES[name]
    config: Any = model.config
    writer = Writer(path, gguf.MODEL_ARCH_NAMES[arch])
    writer.add_context_length(256)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    keys(writer, config)
    groups = next(
        (getattr(config, k) for k in ("n_groups", "mamba_n_groups") if hasattr(config, k)), 1
    )
    mamba2 = name in (
        *(
            "falcon-h1",
            "granite-hybrid",
            "granite-hybrid-moe",
            "mamba2",
            "nemotron-h",
            "nemotron-h-moe",
        ),
    )
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for hf_name, values in change(config, StateDict(model).arrays).items():
        if hf_name.endswith(".A_log"):
            values = -np.exp(values)
        if mamba2 and hf_name.endswith((".A_log", ".D")):
            values = values[:, None]
        if hf_name.endswith((".mixer.norm.weight", ".mamba.norm.weight")):
            values = values.reshape(groups, -1)
        if "conv" in hf_name and values.ndim == 3:
            values = values[:, 0]
        named = hf_name.replace(".dt_bias", ".dt_proj.bias")
        stored = names.get_name(named, try_suffixes=(".weight", ".bias"))
        if named.startswith("blk."):
            stored = named
        assert stored is not None, hf_name
        writer.add_tensor(stored, np.ascontiguousarray(values))
    finish(writer)


@pytest.mark.parametrize("name", FILES)
def test_logits_from_a_file_equal_transformers(name: str, tmp_path: Path) -> None:
    model = make(FILES[name][0])
    write(tmp_path / "m.gguf", name, model)
    backend = CpuBackend("f32", threads=1)
    checkpoint = GGUFCheckpoint(tmp_path / "m.gguf")
    got = solo_logits(backend.build(load(checkpoint, backend), LIMITS), IDS, [40, 1, 19])
    want = hf_logits(model, IDS)
    assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()
