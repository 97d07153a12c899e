"""Families with layer norms and their like from GGUF: the logits are those of transformers.

Files are written as llama.cpp's converter does, tensors named by the `gguf` package.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from galley.errors import ModelError
from galley.kernels.cpu import CpuBackend
from galley.loader.gguf_checkpoint import GGUFCheckpoint
from tests.loader.gguf_files import finish
from tests.models.checkpoints import Case, StateDict, hf_logits, make
from tests.models.driver import LIMITS, load, solo_logits
from tests.models.families import FAMILIES, VARIANTS

IDS = np.random.default_rng(1).integers(0, 131, 60)
Tensors = dict[str, np.ndarray]
ARCH = gguf.MODEL_ARCH


def value_of(config: Any, *names: str) -> Any:
    return next(v for name in names if (v := getattr(config, name, None)) is not None)


def common_keys(writer: gguf.GGUFWriter, c: Any) -> None:
    heads = value_of(c, "num_attention_heads", "n_head")
    head_dim = getattr(c, "head_dim", None) or c.hidden_size // heads
    rotary = getattr(c, "rope_parameters", None) or {}
    writer.add_context_length(256)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(value_of(c, "num_hidden_layers", "n_layer"))
    writer.add_head_count(heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_freq_base(rotary.get("rope_theta", 10000.0))
    factor = rotary.get("partial_rotary_factor", 1.0)
    writer.add_rope_dimension_count(int(head_dim * factor))
    if hasattr(c, "rms_norm_eps"):
        writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    else:
        names = ("layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps")
        writer.add_layer_norm_eps(value_of(c, *names))


def llama_keys(writer: gguf.GGUFWriter, c: Any) -> None:
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count_kv(c.num_key_value_heads)


def bloom_keys(writer: gguf.GGUFWriter, c: Any) -> None:
    writer.add_feed_forward_length(4 * c.hidden_size)


def exaone4_keys(writer: gguf.GGUFWriter, c: Any) -> None:
    llama_keys(writer, c)
    writer.add_sliding_window(c.sliding_window)
    writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in c.layer_types])


def falcon_keys(writer: gguf.GGUFWriter, c: Any) -> None:
    writer.add_feed_forward_length(c.ffn_hidden_size)
    writer.add_head_count_kv(c.num_kv_heads if c.new_decoder_architecture else 1)


def gpt2_keys(writer: gguf.GGUFWriter, c: Any) -> None:
    writer.add_feed_forward_length(c.n_inner)


def gpt_neox_keys(writer: gguf.GGUFWriter, c: Any) -> None:
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_parallel_residual(c.use_parallel_residual)


def hunyuan_keys(writer: gguf.GGUFWriter, c: Any) -> None:
    llama_keys(writer, c)
    stretch = c.rope_parameters["alpha"] ** (c.head_dim / (c.head_dim - 2))
    writer.add_rope_freq_base(c.rope_parameters["rope_theta"] * stretch)


def minicpm_keys(writer: gguf.GGUFWriter, c: Any) -> None:
    llama_keys(writer, c)
    writer.add_embedding_scale(12.0)
    writer.add_residual_scale(1.4 / 3**0.5)
    writer.add_logit_scale(4.0)


def starcoder2_keys(writer: gguf.GGUFWriter, c: Any) -> None:
    llama_keys(writer, c)
    writer.add_sliding_window(c.sliding_window)


def unchanged(c: Any, tensors: Tensors) -> Tensors:
    return tensors


def joined(c: Any, tensors: Tensors) -> Tensors:
    """q, k and v by KV head → all of q, all of k, all of v."""
    heads = value_of(c, "num_attention_heads", "n_head")
    kv_heads = heads
    if hasattr(c, "new_decoder_architecture"):
        kv_heads = c.num_kv_heads if c.new_decoder_architecture else 1
    result = {}
    for name, values in tensors.items():
        if ".query_key_value." in name:
            by_head = values.reshape(kv_heads, heads // kv_heads + 2, -1, *values.shape[1:])
            q, k, v = np.split(by_head, [heads // kv_heads, heads // kv_heads + 1], axis=1)
            values = np.concatenate([part.reshape(-1, *values.shape[1:]) for part in (q, k, v)])
        result[name] = values
    return result


def transposed(c: Any, tensors: Tensors) -> Tensors:
    conv1d = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")
    return {name: t.T if name.endswith(conv1d) else t for name, t in tensors.items()}


def permuted(c: Any, tensors: Tensors) -> Tensors:
    """Rows of q and k in pairs."""
    result = {}
    for name, values in tensors.items():
        kind = name.rpartition(".")[0].rpartition(".")[2]
        heads = {"q_proj": c.num_attention_heads, "k_proj": c.num_key_value_heads}.get(kind)
        if heads:
            halves = values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2)
            values = halves.reshape(values.shape)
        result[name] = values
    return result


def plus_one(c: Any, tensors: Tensors) -> Tensors:
    return {n: t + 1 if n.endswith("norm.weight") else t for n, t in tensors.items()}


def fused(c: Any, tensors: Tensors) -> Tensors:
    """q, k and v as one tensor."""
    result = dict(tensors)
    for name in tensors:
        if ".q_proj." in name:
            parts = [result.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
            result[name.replace("q_proj", "qkv_proj")] = np.concatenate(parts)
    return result


def stacked(c: Any, tensors: Tensors) -> Tensors:
    """The norms of all heads as one tensor."""
    result: dict[str, Any] = {}
    for name, values in tensors.items():
        before, norms, _ = name.partition(".norms.")
        if norms:
            result.setdefault(f"{before}.weight", []).append(values)
        else:
            result[name] = values
    return {name: np.stack(t) if isinstance(t, list) else t for name, t in result.items()}


@dataclass
class File:
    """How a family is written: its architecture in GGUF, its keys, and changes of its tensors.

    Attributes:
        names: the architecture whose map names the tensors; None = its own.
    """

    case: Case
    arch: gguf.MODEL_ARCH
    keys: Callable[[gguf.GGUFWriter, Any], None] = llama_keys
    change: Callable[[Any, Tensors], Tensors] = unchanged
    names: gguf.MODEL_ARCH | None = None


LLAMA = Case("Llama", {"tie_word_embeddings": True})
MINICPM = replace(FAMILIES["minicpm"], remote=None)
FILES = {
    "arcee": File(FAMILIES["arcee"], ARCH.ARCEE, change=permuted),
    "bloom": File(FAMILIES["bloom"], ARCH.BLOOM, bloom_keys, joined),
    "exaone": File(LLAMA, ARCH.EXAONE, names=ARCH.LLAMA),
    "exaone4": File(FAMILIES["exaone4"], ARCH.EXAONE4, exaone4_keys),
    "falcon": File(FAMILIES["falcon"], ARCH.FALCON, falcon_keys, joined),
    "falcon-7b": File(VARIANTS["falcon-7b"], ARCH.FALCON, falcon_keys, joined),
    "falcon2-11b": File(VARIANTS["falcon2-11b"], ARCH.FALCON, falcon_keys, joined),
    "gpt2": File(VARIANTS["gpt2"], ARCH.GPT2, gpt2_keys, transposed),
    "gpt-neox": File(FAMILIES["gpt-neox"], ARCH.GPTNEOX, gpt_neox_keys, joined),
    "gpt-neox-sequential": File(
        VARIANTS["gpt-neox-sequential"], ARCH.GPTNEOX, gpt_neox_keys, joined
    ),
    "hunyuan": File(FAMILIES["hunyuan"], ARCH.HUNYUAN_DENSE, hunyuan_keys),
    "internlm2": File(LLAMA, ARCH.INTERNLM2, change=permuted, names=ARCH.LLAMA),
    "minicpm": File(MINICPM, ARCH.MINICPM, minicpm_keys, permuted),
    "nemotron": File(FAMILIES["nemotron"], ARCH.NEMOTRON, change=plus_one),
    "phi2": File(Case("Phi", {}), ARCH.PHI2),
    "phi2-fused": File(Case("Phi", {}), ARCH.PHI2, change=fused),
    "seed-oss": File(FAMILIES["seed-oss"], ARCH.SEED_OSS),
    "stablelm": File(FAMILIES["stablelm"], ARCH.STABLELM, change=stacked),
    "stablelm-2": File(VARIANTS["stablelm-2"], ARCH.STABLELM),
    "starcoder2": File(FAMILIES["starcoder2"], ARCH.STARCODER2, starcoder2_keys),
}


def write(path: Path, file: File, model: torch.nn.Module, quantized: bool = False) -> None:
    config: Any = model.config
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[file.arch])
    common_keys(writer, config)
    file.keys(writer, config)
    layers = value_of(config, "num_hidden_layers", "n_layer")
    names = gguf.get_tensor_name_map(file.names or file.arch, layers)
    for name, values in file.change(config, StateDict(model).arrays).items():
        spellings = (name, name.removeprefix("transformer."))
        found = [names.get_name(s, try_suffixes=(".weight", ".bias")) for s in spellings]
        stored = found[0] or found[1]
        assert stored is not None, name
        values = np.ascontiguousarray(values, np.float32)
        if quantized and values.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(stored, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(stored, values)
    finish(writer)


def logits(path: Path) -> np.ndarray:
    backend = CpuBackend("f32", threads=1)
    return solo_logits(backend.build(load(GGUFCheckpoint(path), backend), LIMITS), IDS, [40, 1, 19])


@pytest.mark.parametrize("name", FILES)
def test_logits_from_a_file_equal_transformers(name: str, tmp_path: Path) -> None:
    model = make(FILES[name].case)
    write(tmp_path / "m.gguf", FILES[name], model)
    want = hf_logits(model, IDS)
    assert np.abs(logits(tmp_path / "m.gguf") - want).max() <= 1e-4 * np.abs(want).max()


@pytest.mark.parametrize("name", ["gpt-neox", "gpt2"])
def test_quantized_rows_are_put_in_order(name: str, tmp_path: Path) -> None:
    """As far from the exact logits as eight bits are, not as another order of rows is."""
    model = make(FILES[name].case)
    write(tmp_path / "m.gguf", FILES[name], model, quantized=True)
    want = hf_logits(model, IDS)
    assert np.abs(logits(tmp_path / "m.gguf") - want).max() <= 0.05 * np.abs(want).max()


def test_baichuan_by_its_number_of_layers(tmp_path: Path) -> None:
    file = File(LLAMA, ARCH.BAICHUAN, change=permuted, names=ARCH.LLAMA)
    deep = replace(LLAMA, config={"num_hidden_layers": 32, "num_key_value_heads": 4})
    model = make(deep)
    write(tmp_path / "7b.gguf", file, model)
    want = hf_logits(model, IDS)
    assert np.abs(logits(tmp_path / "7b.gguf") - want).max() <= 1e-4 * np.abs(want).max()
    write(tmp_path / "13b.gguf", file, make(LLAMA))
    with pytest.raises(ModelError, match="only the 7B models"):
        GGUFCheckpoint(tmp_path / "13b.gguf")
