"""Decoders with attention from GGUF: the logits are those of the same weights in safetensors.

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
from galley.request import PoolingParams
from tests.loader.gguf_files import finish
from tests.models.checkpoints import ROPES, Case, StateDict, make
from tests.models.driver import LIMITS, load, solo_logits
from tests.models.families import FAMILIES, FULL, SLIDING
from tests.models.test_encoders import PROMPTS, open_client

IDS = np.random.default_rng(1).integers(0, 131, 60)
Writer = gguf.GGUFWriter
Arch = gguf.MODEL_ARCH


def nothing(writer: Writer, c: Any) -> None:
    pass


def window(writer: Writer, c: Any) -> None:
    writer.add_sliding_window(c.sliding_window)


def gemma2(writer: Writer, c: Any) -> None:
    window(writer, c)
    writer.add_attn_logit_softcapping(c.attn_logit_softcapping)
    writer.add_final_logit_softcapping(c.final_logit_softcapping)


def gemma3(writer: Writer, c: Any) -> None:
    window(writer, c)
    writer.add_rope_freq_base(c.rope_parameters[FULL]["rope_theta"])
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(c.rope_parameters[FULL]["factor"])


def glm4(writer: Writer, c: Any) -> None:
    writer.add_rope_dimension_count(c.head_dim // 2)


def granite(writer: Writer, c: Any) -> None:
    writer.add_attention_scale(c.attention_multiplier)
    writer.add_embedding_scale(c.embedding_multiplier)
    writer.add_residual_scale(c.residual_multiplier)
    writer.add_logit_scale(c.logits_scaling)


def cohere(writer: Writer, c: Any) -> None:
    writer.add_logit_scale(c.logit_scale)
    if c.model_type == "cohere2":
        window(writer, c)


def olmo(writer: Writer, c: Any) -> None:
    writer.add_clamp_kqv(c.clip_qkv)


def olmo3(writer: Writer, c: Any) -> None:
    window(writer, c)
    rope = c.rope_parameters[FULL]
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(rope["factor"])
    writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def ministral3(writer: Writer, c: Any) -> None:
    rope = c.rope_parameters
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(rope["factor"])
    writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    writer.add_rope_scaling_yarn_log_mul(rope["mscale_all_dim"])
    writer.add_attn_temperature_scale(rope["llama_4_scaling_beta"])


def phi3(writer: Writer, c: Any) -> None:
    window(writer, c)
    original = c.original_max_position_embeddings
    stretch = c.max_position_embeddings / original
    writer.add_rope_scaling_orig_ctx_len(original)
    writer.add_rope_scaling_attn_factors(float(np.sqrt(1 + np.log(stretch) / np.log(original))))
    for kind in ("long", "short"):
        factors = np.array(c.rope_parameters[f"{kind}_factor"], np.float32)
        writer.add_tensor(f"rope_factors_{kind}.weight", factors)


def changed(name: str, **config: Any) -> Case:
    return replace(FAMILIES[name], config=FAMILIES[name].config | config)


#: Four layers, where the file does not say which of them have a window.
FOUR = {"num_hidden_layers": 4, "layer_types": [SLIDING] * 3 + [FULL]}
SIX = {"num_hidden_layers": 6, "layer_types": [SLIDING] * 5 + [FULL]}
LOCAL = {"rope_type": "default", "rope_theta": 10000.0}
THETA = ROPES["yarn"]["rope_theta"]
#: Case, architecture in GGUF, its own keys.
FILES: dict[str, tuple[Case, gguf.MODEL_ARCH, Callable[[Writer, Any], None]]] = {
    "cohere": (FAMILIES["cohere"], Arch.COMMAND_R, cohere),
    "cohere2": (changed("cohere2", **FOUR), Arch.COHERE2, cohere),
    "gemma": (FAMILIES["gemma"], Arch.GEMMA, nothing),
    "gemma2": (changed("gemma2", query_pre_attn_scalar=16), Arch.GEMMA2, gemma2),
    "gemma3": (
        changed(
            "gemma3",
            **SIX,
            query_pre_attn_scalar=16,
            rope_parameters={FULL: ROPES["linear"], SLIDING: LOCAL},
        ),
        Arch.GEMMA3,
        gemma3,
    ),
    "glm4": (FAMILIES["glm4"], Arch.GLM4, glm4),
    "granite": (FAMILIES["granite"], Arch.GRANITE, granite),
    "ministral3": (
        changed(
            "ministral3",
            rope_parameters=FAMILIES["ministral3"].config["rope_parameters"]
            | {"mscale": 1.0, "mscale_all_dim": 1.0},
        ),
        Arch.MISTRAL3,
        ministral3,
    ),
    "olmo": (FAMILIES["olmo"], Arch.OLMO, olmo),
    "olmo2": (FAMILIES["olmo2"], Arch.OLMO2, nothing),
    "olmo3": (
        changed(
            "olmo3",
            **FOUR,
            rope_parameters={
                FULL: ROPES["yarn"],
                SLIDING: {"rope_type": "default", "rope_theta": THETA},
            },
        ),
        Arch.OLMO2,
        olmo3,
    ),
    "phi3": (FAMILIES["phi3"], Arch.PHI3, phi3),
    "qwen3": (FAMILIES["qwen3"], Arch.QWEN3, nothing),
    "smollm3": (
        changed(
            "smollm3",
            num_hidden_layers=4,
            layer_types=None,
            no_rope_layers=None,
            use_sliding_window=False,
        ),
        Arch.SMOLLM3,
        nothing,
    ),
}
#: Architectures whose q and k llama.cpp stores in pairs.
PAIRS = (Arch.GRANITE, Arch.MISTRAL3, Arch.OLMO, Arch.SMOLLM3)
#: Those whose norms it stores with 1 added.
PLUS_ONE = (Arch.GEMMA, Arch.GEMMA2, Arch.GEMMA3)


def write(path: Path, name: str, model: torch.nn.Module) -> None:
    _, arch, keys = FILES[name]
    c: Any = model.config
    writer = Writer(path, gguf.MODEL_ARCH_NAMES[arch])
    head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    if hasattr(c, "rms_norm_eps"):
        writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    else:
        writer.add_layer_norm_eps(getattr(c, "layer_norm_eps", 1e-5))
    if "rope_theta" in c.rope_parameters:
        writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    keys(writer, c)
    if hasattr(model, "score"):
        writer.add_pooling_type(gguf.PoolingType.RANK)
        writer.add_classifier_output_labels(["yes", "no"])
    names = gguf.get_tensor_name_map(arch, c.num_hidden_layers)
    heads = {"q_proj": c.num_attention_heads, "k_proj": c.num_key_value_heads}
    for hf_name, values in StateDict(model).arrays.items():
        count = heads.get(hf_name.removesuffix(".weight").rpartition(".")[2])
        if count and arch in PAIRS:
            halves = values.reshape(count, 2, -1, values.shape[1]).swapaxes(1, 2)
            values = halves.reshape(values.shape)
        if arch in PLUS_ONE and hf_name.endswith("norm.weight"):
            values = values + np.float32(1)
        stored = names.get_name(hf_name, try_suffixes=(".weight", ".bias"))
        stored = "cls.output.weight" if hf_name == "score.weight" else stored
        assert stored is not None, hf_name
        writer.add_tensor(stored, np.ascontiguousarray(values))
    finish(writer)


def test_a_reranker_scores_with_the_first_of_two_labels(tmp_path: Path) -> None:
    """As Qwen3-Reranker's files have it, and as llama.cpp computes it."""
    labels = {"num_labels": 2, "pad_token_id": 0}
    model = make(replace(changed("qwen3", **labels), head="ForSequenceClassification"))
    write(tmp_path / "m.gguf", "qwen3", model)
    client = open_client(tmp_path / "m.gguf")
    for prompt, output in zip(PROMPTS, client.pool(PROMPTS, PoolingParams()), strict=True):
        with torch.inference_mode():
            want = model(torch.tensor([prompt])).logits[0].softmax(-1)[:1].numpy()
        np.testing.assert_allclose(output.outputs.data, want, atol=1e-4)


@pytest.mark.parametrize("name", FILES)
def test_logits_from_a_file_equal_those_of_safetensors(name: str, tmp_path: Path) -> None:
    model = make(FILES[name][0])
    write(tmp_path / "m.gguf", name, model)
    backend = CpuBackend("f32", threads=1)
    file, tensors = GGUFCheckpoint(tmp_path / "m.gguf"), StateDict(model)
    assert file.model_info.architecture == tensors.model_info.architecture
    got, want = (
        solo_logits(backend.build(load(checkpoint, backend), LIMITS), IDS, [40, 1, 19])
        for checkpoint in (file, tensors)
    )
    # Metadata has 32 bits where a config has 64.
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()
