"""Families with recurrent states from GGUF: the logits are those of transformers.

Files are written as llama.cpp's converter does, tensors named by the `gguf` package.
"""

from __future__ import annotations

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
    writer.add_feed_forward_length(c.intermediate_size)
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
    writer.add_layer_norm_rms_eps(c.layer_norm_epsilon)
    sizes = [c.intermediate_size if kind == "mlp" else 0 for kind in c.layers_block_type]
    writer.add_feed_forward_length(sizes)
    writer.add_key_length(c.head_dim)
    writer.add_value_length(c.head_dim)


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


def unchanged(c: Any, tensors: Tensors) -> Tensors:
    return tensors


DENSE_JAMBA = replace(FAMILIES["jamba"], config=FAMILIES["jamba"].config | {"num_experts": 1})
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
    "jamba": (DENSE_JAMBA, gguf.MODEL_ARCH.JAMBA, jamba_keys, unchanged),
    "lfm2": (FAMILIES["lfm2"], gguf.MODEL_ARCH.LFM2, lfm2_keys, unchanged),
    "mamba": (FAMILIES["mamba"], gguf.MODEL_ARCH.MAMBA, mamba_keys, unchanged),
    "mamba2": (FAMILIES["mamba2"], gguf.MODEL_ARCH.MAMBA2, mamba2_keys, unchanged),
    "nemotron-h": (
        *(FAMILIES["nemotron-h"], gguf.MODEL_ARCH.NEMOTRON_H),
        *(nemotron_keys, unchanged),
    ),
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
    mamba2 = name in ("falcon-h1", "granite-hybrid", "mamba2", "nemotron-h")
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for hf_name, values in change(config, StateDict(model).arrays).items():
        if hf_name.endswith(".A_log"):
            values = -np.exp(values)
        if mamba2 and hf_name.endswith((".A_log", ".D")):
            values = values[:, None]
        if hf_name.endswith((".mixer.norm.weight", ".mamba.norm.weight")):
            values = values.reshape(groups, -1)
        if ".conv" in hf_name and values.ndim == 3:
            values = values[:, 0]
        named = hf_name.replace(".dt_bias", ".dt_proj.bias")
        stored = names.get_name(named, try_suffixes=(".weight", ".bias"))
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
