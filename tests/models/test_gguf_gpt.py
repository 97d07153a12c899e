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
from tests.models.remote import with_alibi

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


def deci_keys(writer: gguf.GGUFWriter, c: Any) -> None:
    writer.add_head_count([c.num_attention_heads, 0, c.num_attention_heads])
    writer.add_head_count_kv([c.num_key_value_heads, 0, c.num_key_value_heads])
    writer.add_feed_forward_length([256, 80, 0])


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


def apertus_keys(writer: gguf.GGUFWriter, c: Any) -> None:
    llama_keys(writer, c)
    # Those of `with_known_xielu`.
    writer.add_xielu_alpha_p([0.55, 0.1, -0.4])
    writer.add_xielu_alpha_n([-0.3, 0.2, 0.4])
    writer.add_xielu_beta([0.5, 0.25, 0.75])
    writer.add_xielu_eps([-1e-6] * 3)


def with_known_xielu(model: torch.nn.Module) -> torch.nn.Module:
    """The parameters that `apertus_keys` writes."""
    values = {"alpha_p": (0.55, 0.1, -0.4), "alpha_n": (-0.3, 0.2, 0.4), "beta": (0.5, 0.25, 0.75)}
    state = model.state_dict()
    for name, of_layers in values.items():
        for i, value in enumerate(of_layers):
            state[f"model.layers.{i}.mlp.act_fn.{name}"].fill_(value)
            state[f"model.layers.{i}.mlp.act_fn.eps"].fill_(-1e-6)
    return model


def without_xielu(c: Any, tensors: Tensors) -> Tensors:
    return {name: t for name, t in tensors.items() if ".act_fn." not in name}


def gemma4_keys(writer: gguf.GGUFWriter, c: Any) -> None:
    slides = [kind == "sliding_attention" for kind in c.layer_types]
    shared_from = c.num_hidden_layers - c.num_kv_shared_layers
    size = c.intermediate_size
    writer.add_feed_forward_length(
        [size if i < shared_from else 2 * size for i in range(c.num_hidden_layers)]
    )
    own = FAMILIES["gemma4-experts" if c.enable_moe_block else "gemma4"].config
    kv_heads, head_dim, full_dim = 2, own["head_dim"], own["global_head_dim"]
    full_kv_heads = own.get("num_global_key_value_heads", kv_heads)
    if c.enable_moe_block:
        writer.add_expert_count(c.num_experts)
        writer.add_expert_used_count(c.top_k_experts)
        writer.add_expert_feed_forward_length(c.moe_intermediate_size)
    writer.add_head_count_kv([kv_heads if slide else full_kv_heads for slide in slides])
    writer.add_key_length(full_dim)
    writer.add_value_length(full_dim)
    writer.add_key_length_swa(head_dim)
    writer.add_value_length_swa(head_dim)
    writer.add_rope_dimension_count(full_dim)
    writer.add_rope_dimension_count_swa(head_dim)
    writer.add_rope_freq_base(c.rope_parameters["full_attention"]["rope_theta"])
    writer.add_rope_freq_base_swa(c.rope_parameters["sliding_attention"]["rope_theta"])
    writer.add_sliding_window(c.sliding_window)
    writer.add_sliding_window_pattern(slides)
    writer.add_shared_kv_layers(c.num_kv_shared_layers)
    writer.add_embedding_length_per_layer_input(c.hidden_size_per_layer_input)
    if c.final_logit_softcapping:
        writer.add_final_logit_softcapping(c.final_logit_softcapping)
    rotated = int(full_dim * 0.25 / 2)
    still = full_dim // 2 - rotated
    writer.add_tensor("rope_freqs.weight", np.array([1.0] * rotated + [1e30] * still, np.float32))


def gemma3n_keys(writer: gguf.GGUFWriter, c: Any) -> None:
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_rope_freq_base(c.rope_parameters["full_attention"]["rope_theta"])
    writer.add_rope_freq_base_swa(c.rope_parameters["sliding_attention"]["rope_theta"])
    writer.add_sliding_window(c.sliding_window)
    writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in c.layer_types])
    writer.add_shared_kv_layers(c.num_kv_shared_layers)
    writer.add_embedding_length_per_layer_input(c.hidden_size_per_layer_input)
    writer.add_altup_active_idx(c.altup_active_idx)
    writer.add_altup_num_inputs(c.altup_num_inputs)
    normal = torch.distributions.normal.Normal(0, 1)
    cuts = [normal.icdf(torch.tensor(x)).item() for x in c.activation_sparsity_pattern]
    writer.add_activation_sparsity_scale(cuts)
    writer.add_final_logit_softcapping(c.final_logit_softcapping)


def with_streams(c: Any, tensors: Tensors) -> Tensors:
    """The projections of all streams as one tensor."""
    result: dict[str, Any] = {}
    for name, values in tensors.items():
        stem, _, number = name.removesuffix(".weight").rpartition(".")
        if stem.endswith(("altup_projections", "altup_unembed_projections")):
            result.setdefault(f"{stem}.weight", {})[int(number)] = values
        else:
            result[name + ".weight" if name.endswith("_scale") else name] = values
    return {
        name: np.stack([t[i] for i in sorted(t)]) if isinstance(t, dict) else t
        for name, t in result.items()
    }


def with_weights(c: Any, tensors: Tensors) -> Tensors:
    """A layer's factor, and the experts, are named as weights."""
    ends = ("layer_scalar", "experts.gate_up_proj", "experts.down_proj")
    return {n + ".weight" if n.endswith(ends) else n: t for n, t in tensors.items()}


#: Vectors of Gemma 4's router and their ends in the file.
ROUTER = {"router.scale": "ffn_gate_inp.scale", "router.per_expert_scale": "ffn_down_exps.scale"}


def mpt_keys(writer: gguf.GGUFWriter, c: Any) -> None:
    writer.add_feed_forward_length(4 * c.hidden_size)
    writer.add_head_count_kv(c.n_heads)
    writer.add_clamp_kqv(c.attn_config.clip_qkv)
    writer.add_max_alibi_bias(c.attn_config.alibi_bias_max)


def starcoder_keys(writer: gguf.GGUFWriter, c: Any) -> None:
    writer.add_feed_forward_length(c.n_inner)
    writer.add_head_count_kv(1)


def minicpm3_keys(writer: gguf.GGUFWriter, c: Any) -> None:
    llama_keys(writer, c)
    writer.add_q_lora_rank(c.q_lora_rank)
    writer.add_kv_lora_rank(c.kv_lora_rank)
    writer.add_key_length(c.qk_nope_head_dim + c.qk_rope_head_dim)
    writer.add_value_length(c.v_head_dim)
    writer.add_rope_dimension_count(c.qk_rope_head_dim)


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


#: Without its scaling of long texts, which a file has as a tensor of factors.
APERTUS = replace(
    FAMILIES["apertus"],
    config=FAMILIES["apertus"].config
    | {"rope_parameters": {"rope_type": "default", "rope_theta": 12e6}},
)
#: With the factors that are in llama.cpp's code.
MINICPM3 = replace(
    FAMILIES["minicpm3"],
    config=FAMILIES["minicpm3"].config
    | {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256}
    | {"v_head_dim": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
)
#: With what is in llama.cpp's code.
GEMMA3N = replace(
    FAMILIES["gemma3n"],
    config=FAMILIES["gemma3n"].config
    | {"altup_num_inputs": 4, "laurel_rank": 64, "hidden_size_per_layer_input": 256},
)
LLAMA = Case("Llama", {"tie_word_embeddings": True})
MINICPM = replace(FAMILIES["minicpm"], remote=None)


def qwen_vl_keys(writer: gguf.GGUFWriter, c: Any) -> None:
    """Text has one position for all axes, so sections change nothing if they name all pairs."""
    llama_keys(writer, c)
    writer.add_rope_dimension_sections([3, 3, 2, 0])


FILES = {
    "apertus": File(APERTUS, ARCH.APERTUS, apertus_keys, without_xielu),
    "arcee": File(FAMILIES["arcee"], ARCH.ARCEE, change=permuted),
    "bloom": File(FAMILIES["bloom"], ARCH.BLOOM, bloom_keys, joined),
    "chatglm": File(FAMILIES["glm"], ARCH.CHATGLM),
    "chatglm-fused": File(FAMILIES["glm"], ARCH.CHATGLM, change=fused),
    "decilm": File(FAMILIES["decilm"], ARCH.DECI, deci_keys, permuted),
    "ernie4.5": File(Case("Ernie4_5", {"head_dim": 32}), ARCH.ERNIE4_5),
    "exaone": File(LLAMA, ARCH.EXAONE, names=ARCH.LLAMA),
    "qwen2vl": File(Case("Qwen2", {}), ARCH.QWEN2VL, qwen_vl_keys),
    "qwen3vl": File(Case("Qwen3", {"head_dim": 16}), ARCH.QWEN3VL, qwen_vl_keys),
    "exaone4": File(FAMILIES["exaone4"], ARCH.EXAONE4, exaone4_keys),
    "falcon": File(FAMILIES["falcon"], ARCH.FALCON, falcon_keys, joined),
    "falcon-7b": File(VARIANTS["falcon-7b"], ARCH.FALCON, falcon_keys, joined),
    "falcon2-11b": File(VARIANTS["falcon2-11b"], ARCH.FALCON, falcon_keys, joined),
    "gemma3n": File(GEMMA3N, ARCH.GEMMA3N, gemma3n_keys, with_streams),
    "gemma4": File(FAMILIES["gemma4"], ARCH.GEMMA4, gemma4_keys, with_weights),
    "gemma4-experts": File(FAMILIES["gemma4-experts"], ARCH.GEMMA4, gemma4_keys, with_weights),
    "gpt2": File(VARIANTS["gpt2"], ARCH.GPT2, gpt2_keys, transposed),
    "gpt-neox": File(FAMILIES["gpt-neox"], ARCH.GPTNEOX, gpt_neox_keys, joined),
    "gpt-neox-sequential": File(
        VARIANTS["gpt-neox-sequential"], ARCH.GPTNEOX, gpt_neox_keys, joined
    ),
    "hunyuan": File(FAMILIES["hunyuan"], ARCH.HUNYUAN_DENSE, hunyuan_keys),
    "jais2": File(FAMILIES["jais2"], ARCH.JAIS2),
    "internlm2": File(LLAMA, ARCH.INTERNLM2, change=permuted, names=ARCH.LLAMA),
    "minicpm": File(MINICPM, ARCH.MINICPM, minicpm_keys, permuted),
    "minicpm3": File(MINICPM3, ARCH.MINICPM3, minicpm3_keys),
    "mpt": File(FAMILIES["mpt"], ARCH.MPT, mpt_keys),
    "nemotron": File(FAMILIES["nemotron"], ARCH.NEMOTRON, change=plus_one),
    "phi2": File(Case("Phi", {}), ARCH.PHI2),
    "phi2-fused": File(Case("Phi", {}), ARCH.PHI2, change=fused),
    "seed-oss": File(FAMILIES["seed-oss"], ARCH.SEED_OSS),
    "stablelm": File(FAMILIES["stablelm"], ARCH.STABLELM, change=stacked),
    "stablelm-2": File(VARIANTS["stablelm-2"], ARCH.STABLELM),
    "starcoder": File(FAMILIES["gpt-bigcode"], ARCH.STARCODER, starcoder_keys),
    "starcoder2": File(FAMILIES["starcoder2"], ARCH.STARCODER2, starcoder2_keys),
}


def write(path: Path, file: File, model: torch.nn.Module, quantized: bool = False) -> None:
    config: Any = getattr(model, "inner", model).config
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[file.arch])
    common_keys(writer, config)
    file.keys(writer, config)
    layers = value_of(config, "num_hidden_layers", "n_layer")
    names = gguf.get_tensor_name_map(file.names or file.arch, layers)
    for name, values in file.change(config, StateDict(model).arrays).items():
        spellings = (name, name.removeprefix("transformer."))
        found = [names.get_name(s, try_suffixes=(".weight", ".bias")) for s in spellings]
        stored = found[0] or found[1]
        for own, end in ROUTER.items():
            if name.endswith(own):
                stored = f"blk.{name.split('.')[2]}.{end}"
        assert stored is not None, name
        values = np.ascontiguousarray(values, np.float32)
        if quantized and values.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(stored, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(stored, values)
    finish(writer)


def made(name: str) -> torch.nn.Module:
    model = make(FILES[name].case)
    if name.startswith("gemma4"):  # whose layers differ
        model.config.allow_global_per_layer_attribute_access = True
    return with_known_xielu(model) if name == "apertus" else model


def logits(path: Path) -> np.ndarray:
    backend = CpuBackend("f32", threads=1)
    return solo_logits(backend.build(load(GGUFCheckpoint(path), backend), LIMITS), IDS, [40, 1, 19])


@pytest.mark.parametrize("name", FILES)
def test_logits_from_a_file_equal_transformers(name: str, tmp_path: Path) -> None:
    model = made(name)
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


@pytest.mark.parametrize(
    ("key", "value"),
    [("logit_scale", 0.5), ("attention.causal", False), ("attn_logit_softcapping", 30.0)],
)
def test_a_key_that_the_architecture_does_not_have_is_refused(
    key: str, value: Any, tmp_path: Path
) -> None:
    def keys(writer: gguf.GGUFWriter, c: Any) -> None:
        llama_keys(writer, c)
        add = writer.add_bool if isinstance(value, bool) else writer.add_float32
        add(f"exaone.{key}", value)

    write(tmp_path / "m.gguf", replace(FILES["exaone"], keys=keys), make(LLAMA))
    with pytest.raises(ModelError, match=f"exaone.{key} = .* is not supported"):
        GGUFCheckpoint(tmp_path / "m.gguf")


def test_baichuan_by_its_number_of_layers(tmp_path: Path) -> None:
    file = File(LLAMA, ARCH.BAICHUAN, change=permuted, names=ARCH.LLAMA)
    deep = replace(LLAMA, config={"num_hidden_layers": 32, "num_key_value_heads": 4})
    model = make(deep)
    write(tmp_path / "7b.gguf", file, model)
    want = hf_logits(model, IDS)
    assert np.abs(logits(tmp_path / "7b.gguf") - want).max() <= 1e-4 * np.abs(want).max()
    large = make(replace(deep, config=deep.config | {"num_hidden_layers": 40}))
    with_alibi(large)
    write(tmp_path / "13b.gguf", file, large)
    want = hf_logits(large, IDS)
    assert np.abs(logits(tmp_path / "13b.gguf") - want).max() <= 1e-4 * np.abs(want).max()
    write(tmp_path / "other.gguf", file, make(LLAMA))
    with pytest.raises(ModelError, match="3 layers is neither the 7B nor the 13B"):
        GGUFCheckpoint(tmp_path / "other.gguf")
