"""Families with experts from GGUF: the logits are those of transformers.

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
from galley.kernels.reference import ReferenceBackend
from galley.loader.gguf_checkpoint import GGUFCheckpoint
from tests.loader.gguf_files import finish
from tests.models.checkpoints import Case, hf_logits, make
from tests.models.driver import LIMITS, load, solo_logits
from tests.models.mixtures import FAMILIES, VARIANTS

IDS = np.random.default_rng(1).integers(0, 131, 60)
ARCH = gguf.MODEL_ARCH
Writer = gguf.GGUFWriter
Tensors = dict[str, np.ndarray]


def common(writer: Writer, c: Any) -> None:
    rope = c.rope_parameters
    writer.add_context_length(256)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_head_count(c.num_attention_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_expert_count(getattr(c, "num_experts", None) or c.num_local_experts)
    writer.add_expert_used_count(c.num_experts_per_tok)


def heads(writer: Writer, c: Any) -> None:
    dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    part = c.rope_parameters.get("partial_rotary_factor", 1.0)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_key_length(dim)
    writer.add_value_length(dim)
    writer.add_rope_dimension_count(int(dim * part))


def mixtral(writer: Writer, c: Any) -> None:
    heads(writer, c)
    writer.add_feed_forward_length(c.intermediate_size)
    if getattr(c, "sliding_window", None):
        writer.add_sliding_window(c.sliding_window)


def phimoe(writer: Writer, c: Any) -> None:
    mixtral(writer, c)
    rope = c.rope_parameters
    writer.add_rope_scaling_attn_factors(rope["short_mscale"])
    writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    for kind in ("long", "short"):
        factors = np.array(rope[f"{kind}_factor"], np.float32)
        writer.add_tensor(f"rope_factors_{kind}.weight", factors)


def qwen(writer: Writer, c: Any) -> None:
    heads(writer, c)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_expert_feed_forward_length(c.moe_intermediate_size)
    if hasattr(c, "shared_expert_intermediate_size"):
        writer.add_expert_shared_feed_forward_length(c.shared_expert_intermediate_size)


def qwen_vl(writer: Writer, c: Any) -> None:
    """Text has one position for all axes, so sections change nothing if they name all pairs."""
    qwen(writer, c)
    writer.add_rope_dimension_sections([6, 5, 5, 0])


def granite(writer: Writer, c: Any) -> None:
    mixtral(writer, c)
    writer.add_attention_scale(c.attention_multiplier)
    writer.add_embedding_scale(c.embedding_multiplier)
    writer.add_residual_scale(c.residual_multiplier)
    writer.add_logit_scale(c.logits_scaling)
    if hasattr(c, "shared_intermediate_size"):
        writer.add_expert_shared_feed_forward_length(c.shared_intermediate_size)


def minimax(writer: Writer, c: Any) -> None:
    mixtral(writer, c)
    writer.add_expert_feed_forward_length(c.intermediate_size)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)


def routed(writer: Writer, c: Any) -> None:
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_expert_feed_forward_length(c.moe_intermediate_size)
    writer.add_expert_shared_count(c.n_shared_experts)
    writer.add_expert_group_count(c.n_group)
    writer.add_expert_group_used_count(c.topk_group)
    writer.add_expert_weights_scale(c.routed_scaling_factor)
    writer.add_leading_dense_block_count(c.first_k_dense_replace)


def glm(writer: Writer, c: Any) -> None:
    heads(writer, c)
    routed(writer, c)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_expert_weights_norm(c.norm_topk_prob)


def deepseek(writer: Writer, c: Any) -> None:
    v3, rope = c.model_type != "deepseek_v2", c.rope_parameters
    routed(writer, c)
    functions = gguf.ExpertGatingFuncType
    writer.add_expert_gating_func(functions.SIGMOID if v3 else functions.SOFTMAX)
    writer.add_expert_weights_norm(v3)
    writer.add_head_count_kv(1)
    if c.q_lora_rank:
        writer.add_q_lora_rank(c.q_lora_rank)
    writer.add_kv_lora_rank(c.kv_lora_rank)
    writer.add_key_length(c.kv_lora_rank + c.qk_rope_head_dim)
    writer.add_value_length(c.kv_lora_rank)
    writer.add_key_length_mla(c.qk_nope_head_dim + c.qk_rope_head_dim)
    writer.add_value_length_mla(c.v_head_dim)
    writer.add_rope_dimension_count(c.qk_rope_head_dim)
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(rope["factor"])
    writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    writer.add_rope_scaling_yarn_log_mul(0.1 * rope["mscale_all_dim"])
    if hasattr(c, "index_topk"):
        writer.add_indexer_top_k(c.index_topk)


def afmoe(writer: Writer, c: Any) -> None:
    heads(writer, c)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_expert_feed_forward_length(c.moe_intermediate_size)
    writer.add_expert_shared_count(c.num_shared_experts)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_expert_weights_norm(True)
    writer.add_expert_weights_scale(c.route_scale)
    writer.add_leading_dense_block_count(c.num_dense_layers)
    writer.add_sliding_window(c.sliding_window)


def exaone(writer: Writer, c: Any) -> None:
    heads(writer, c)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_expert_feed_forward_length(c.moe_intermediate_size)
    writer.add_expert_shared_count(c.num_shared_experts)
    writer.add_expert_shared_feed_forward_length(c.moe_intermediate_size * c.num_shared_experts)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_expert_weights_norm(c.norm_topk_prob)
    writer.add_expert_weights_scale(c.routed_scaling_factor)
    writer.add_leading_dense_block_count(c.mlp_layer_types.count("dense"))
    writer.add_sliding_window(c.sliding_window)
    writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in c.layer_types])


def hunyuan(writer: Writer, c: Any) -> None:
    heads(writer, c)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_expert_feed_forward_length(c.intermediate_size)
    writer.add_expert_shared_feed_forward_length(c.intermediate_size)
    writer.add_expert_used_count(c.moe_topk)


def ernie(writer: Writer, c: Any) -> None:
    heads(writer, c)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_expert_feed_forward_length(c.moe_intermediate_size)
    writer.add_expert_shared_count(c.moe_num_shared_experts)
    writer.add_expert_shared_feed_forward_length(c.moe_intermediate_size * c.moe_num_shared_experts)
    writer.add_expert_used_count(c.moe_k)
    writer.add_leading_dense_block_count(c.moe_layer_start_index)
    writer.add_interleave_moe_layer_step(c.moe_layer_interval)


def llama4(writer: Writer, c: Any) -> None:
    heads(writer, c)
    writer.add_feed_forward_length(c.intermediate_size_mlp)
    writer.add_expert_feed_forward_length(c.intermediate_size)
    writer.add_interleave_moe_layer_step(c.interleave_moe_layer_step)


def gpt_oss(writer: Writer, c: Any) -> None:
    mixtral(writer, c)
    writer.add_expert_feed_forward_length(c.intermediate_size)
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(c.rope_parameters["factor"])
    writer.add_rope_scaling_orig_ctx_len(c.rope_parameters["original_max_position_embeddings"])


def split(c: Any, tensors: Tensors) -> Tensors:
    """Gate and up of all experts in tensors of their own."""
    result = {}
    for name, values in tensors.items():
        if name.endswith(("experts.gate_up_proj", "shared_mlp.input_linear.weight")):
            kinds = ("gate_proj", "up_proj")
            stem = name.replace(".gate_up_proj", "").replace(".input_linear.weight", "")
            for kind, part in zip(kinds, np.split(values, 2, -2), strict=True):
                result[f"{stem}.{kind}.weight"] = part
        elif name.endswith("experts.down_proj"):
            result[f"{name}.weight"] = values
        else:
            result[name] = values
    renamed = {
        "block_sparse_moe.router.weight": "block_sparse_moe.router.layer.weight",
        ".gate.moe_statics": ".moe_statics",
        "block_sparse_moe.experts": "mlp.experts",
        "shared_mlp": "mlp.shared_experts",
        "mlp.mlp.shared_experts": "mlp.shared_mlp",  # Hunyuan
    }
    for old, new in renamed.items():
        result = {name.replace(old, new): values for name, values in result.items()}
    return {n.replace("output_linear", "down_proj"): values for n, values in result.items()}


def stacked(c: Any, tensors: Tensors) -> Tensors:
    """All experts in one tensor of each kind."""
    result: dict[str, Any] = {}
    for name, values in tensors.items():
        if ".mlp.experts." in name:
            result.setdefault(re.sub(r"experts\.\d+", "experts", name), []).append(values)
        else:
            result[name] = values
    return {name: np.stack(t) if isinstance(t, list) else t for name, t in result.items()}


def from_inputs(c: Any, tensors: Tensors) -> Tensors:
    """Llama 4 has its experts' matrices transposed."""
    return split(
        c,
        {
            name: values.swapaxes(1, 2) if ".experts." in name else values
            for name, values in tensors.items()
        },
    )


def permuted(c: Any, tensors: Tensors) -> Tensors:
    """Also, rows of q and k are paired as llama.cpp rotates them."""
    result = split(c, tensors)
    for name, values in result.items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            n = c.num_attention_heads if "q_proj" in name else c.num_key_value_heads
            pairs = values.reshape(n, 2, -1, values.shape[1]).swapaxes(1, 2)
            result[name] = pairs.reshape(values.shape)
    return result


def by_head(c: Any, tensors: Tensors) -> Tensors:
    """Also, the up-projections of latents are apart, those of keys transposed."""
    result = {}
    for name, values in split(c, tensors).items():
        if "kv_b_proj" not in name:
            result[name] = values
            continue
        each = values.reshape(c.num_attention_heads, -1, c.kv_lora_rank)
        keys = each[:, : c.qk_nope_head_dim].swapaxes(1, 2)
        result[name.replace("kv_b_proj", "k_b_proj")] = keys
        result[name.replace("kv_b_proj", "v_b_proj")] = each[:, c.qk_nope_head_dim :]
    return result


def in_turn(c: Any, tensors: Tensors) -> Tensors:
    """gpt-oss: transposed, outputs of gate and up in turn."""
    result = {}
    for name, values in tensors.items():
        stem, _, last = name.rpartition(".")
        if last == "gate_up_proj":
            result[f"{stem}.gate_proj.weight"] = values[..., ::2].swapaxes(1, 2)
            result[f"{stem}.up_proj.weight"] = values[..., 1::2].swapaxes(1, 2)
        elif last == "gate_up_proj_bias":
            result[f"{stem}.gate_proj.bias"] = values[..., ::2]
            result[f"{stem}.up_proj.bias"] = values[..., 1::2]
        elif last == "down_proj":
            result[f"{stem}.down_proj.weight"] = values.swapaxes(1, 2)
        elif last == "down_proj_bias":
            result[f"{stem}.down_proj.bias"] = values
        else:
            result[name + ".weight" if last == "sinks" else name] = values
    return result


#: Of the families of `mixtures`: architecture in GGUF, keys, and what is done to all tensors.
FILES: dict[str, tuple[ARCH, Callable[..., None], Callable[..., Tensors]]] = {
    "afmoe": (ARCH.AFMOE, afmoe, split),
    "bailing-moe-v2": (ARCH.BAILINGMOE2, glm, stacked),
    "deepseek-v2": (ARCH.DEEPSEEK2, deepseek, split),
    "deepseek-v3": (ARCH.DEEPSEEK2, deepseek, by_head),
    "deepseek-v3.2": (ARCH.GLM_DSA, deepseek, by_head),
    "glm-moe-dsa": (ARCH.GLM_DSA, deepseek, by_head),
    "ernie4.5-moe": (ARCH.ERNIE4_5_MOE, ernie, split),
    "exaone-moe": (ARCH.EXAONE_MOE, exaone, split),
    "glm4-moe": (ARCH.GLM4_MOE, glm, split),
    "gpt-oss": (ARCH.GPT_OSS, gpt_oss, in_turn),
    "granite-moe-shared": (ARCH.GRANITE_MOE, granite, permuted),
    "hunyuan-moe": (ARCH.HUNYUAN_MOE, hunyuan, split),
    "llama4": (ARCH.LLAMA4, llama4, from_inputs),
    "minimax-m2": (ARCH.MINIMAXM2, minimax, split),
    "mixtral": (ARCH.LLAMA, mixtral, permuted),
    "olmoe": (ARCH.OLMOE, mixtral, split),
    "phimoe": (ARCH.PHIMOE, phimoe, split),
    "qwen2-moe": (ARCH.QWEN2MOE, qwen, split),
    "qwen3-moe": (ARCH.QWEN3MOE, qwen, split),
    "qwen3-vl-moe": (ARCH.QWEN3VLMOE, qwen_vl, split),
}


def write(path: Path, name: str, model: torch.nn.Module, experts: Any = None) -> None:
    arch, keys, change = FILES[name]
    config: Any = getattr(model, "inner", model).config
    # The package does not know the name of V3.2, whose tensors are called as those of GLM 5.
    title = "deepseek32" if name == "deepseek-v3.2" else gguf.MODEL_ARCH_NAMES[arch]
    writer = Writer(path, title)
    common(writer, config)
    keys(writer, config)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    state = {key: t.detach().float().numpy() for key, t in model.state_dict().items()}
    for hf_name, values in change(config, state).items():
        named = hf_name.replace("e_score_correction_bias", "e_score_correction.bias")
        named = named.replace("expert_bias", "expert_bias.bias")
        if named.endswith(("_proj", "_linear")):
            named += ".weight"
        stored = names.get_name(named, try_suffixes=(".weight", ".bias"))
        assert stored is not None, hf_name
        values = np.ascontiguousarray(values.squeeze())
        if experts is not None and "_exps" in stored:
            writer.add_tensor(stored, gguf.quants.quantize(values, experts), raw_dtype=experts)
        else:
            writer.add_tensor(stored, values)
    finish(writer)


@pytest.mark.parametrize("name", FILES)
def test_logits_from_a_file_equal_transformers(name: str, tmp_path: Path) -> None:
    model = make(case_of(name))
    write(tmp_path / "m.gguf", name, model)
    backend = CpuBackend("f32", threads=1)
    checkpoint = GGUFCheckpoint(tmp_path / "m.gguf")
    got = solo_logits(backend.build(load(checkpoint, backend), LIMITS), IDS, [40, 1, 19])
    want = hf_logits(model, IDS)
    assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()


def case_of(name: str) -> Case:
    """The family's, with what its files can say."""
    case = (FAMILIES | VARIANTS)[name.replace("-vl", "")]
    if name.startswith("deepseek") or name == "glm-moe-dsa":
        # Files have one number for both.
        rope = {**case.config["rope_parameters"], "mscale": 1.3}
        case = replace(case, config={**case.config, "rope_parameters": rope})
    if name == "afmoe":  # each fourth layer sees all tokens
        kinds = [*["sliding_attention"] * 3, "full_attention"]
        case = replace(case, config={**case.config, "num_hidden_layers": 4, "layer_types": kinds})
    if name == "exaone-moe":  # files say nothing of groups
        case = replace(case, config={**case.config, "n_group": 1, "topk_group": 1})
    if name.startswith("qwen"):
        # llama.cpp has no dense layers here.
        sparse = {"mlp_only_layers": [], "decoder_sparse_step": 1}
        case = replace(case, config={**case.config, **sparse})
    if name == "phimoe":  # of the checkpoints; files do not say it
        case = replace(case, config={**case.config, "router_jitter_noise": 0.01})
    if name == "gpt-oss":  # which llama.cpp knows
        case = replace(case, config={**case.config, "swiglu_limit": 7.0})
    if name == "deepseek-v3":
        case = replace(case, config={**case.config, "attention_bias": False})
    if name == "llama4":  # as it is in llama.cpp's code
        fixed = {"attention_chunk_size": 8192, "floor_scale": 8192, "attn_scale": 0.1}
        case = replace(
            case, config={**case.config, **fixed, "no_rope_layers": None, "num_hidden_layers": 4}
        )
    return case


def test_quantised_experts_are_read_one_by_one(tmp_path: Path) -> None:
    """The values of the file; the native backend rounds its inputs before them."""
    case = FAMILIES["qwen3-moe"]
    sizes = {"moe_intermediate_size": 64, "decoder_sparse_step": 1}
    model = make(replace(case, config={**case.config, **sizes}))
    write(tmp_path / "m.gguf", "qwen3-moe", model, experts=gguf.GGMLQuantizationType.Q8_0)
    checkpoint = GGUFCheckpoint(tmp_path / "m.gguf")
    assert checkpoint.header("model.layers.1.mlp.experts.7.up_proj.weight").dtype == "Q8_0"
    logits = [
        solo_logits(backend.build(load(checkpoint, backend), LIMITS), IDS, [60])
        for backend in (ReferenceBackend(), CpuBackend("f32", threads=1))
    ]
    assert np.median(np.abs(logits[0] - logits[1])) <= 1e-3 * np.abs(logits[0]).max()
