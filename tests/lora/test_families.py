"""Adapters of all layers equal the merged model: all families, several weight formats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from galley import LLM, LoRARequest
from galley.config import LoadConfig, ModelConfig
from galley.loader import RawTensor, open_checkpoint, resolve_source
from galley.quant import to_float32
from tests.loader.gguf_files import write_gguf
from tests.lora import merging
from tests.lora.merging import Base
from tests.lora.test_merged import PROMPTS, answers, open_model
from tests.models.checkpoints import CASES
from tests.models.encoders import ENCODERS
from tests.models.families import FAMILIES
from tests.quant import (
    test_awq,
    test_bitsandbytes,
    test_compressed_tensors,
    test_fp8,
    test_gptq,
    test_hqq,
    test_torchao,
)
from tests.quant.blocks import random_blocks


def compare(base: Base, tmp_path: Path, tolerance: float, **flags: Any) -> None:
    adapter = merging.random_tensors(base, seed=1)
    request = LoRARequest("a", 1, str(merging.save(tmp_path / "adapter", adapter)))
    wanted = answers(open_model(merging.save_merged(base, adapter, tmp_path / "merged")))
    llm = open_model(base.path, enable_lora=True, max_lora_rank=8, **flags)
    plain = answers(llm)
    mixed = answers(llm, lora_request=[request, None, request])
    assert mixed[1] == plain[1]
    assert answers(llm, PROMPTS[:1], lora_request=request) == mixed[:1]
    assert plain != wanted
    for i in (0, 2):
        ids, logprobs = mixed[i]
        wanted_ids, wanted_logprobs = wanted[i]
        same = next((j for j in range(10) if ids[j] != wanted_ids[j]), 10)
        assert same == 10 or tolerance > 1e-4
        assert same > 0
        np.testing.assert_allclose(logprobs[:same], wanted_logprobs[:same], atol=tolerance)


@pytest.mark.parametrize("name", FAMILIES)
def test_families(name: str, tmp_path: Path) -> None:
    base = merging.save_case(FAMILIES[name], tmp_path / "base")
    assert len(base.sites) > 3
    compare(base, tmp_path, 1e-4)


@pytest.mark.parametrize("name", ["mixtral", "llama4"])
def test_native_experts_equal_their_definition(name: str, tmp_path: Path) -> None:
    base = merging.save_case(FAMILIES[name], tmp_path / "base")
    path = merging.save(tmp_path / "adapter", merging.random_tensors(base, seed=2))
    loras = [LoRARequest("a", 1, str(path)), None, None]
    native, reference = (
        answers(open_model(base.path, enable_lora=True, backend=backend), lora_request=loras)
        for backend in ("cpu", "reference")
    )
    for (ids, logprobs), (wanted_ids, wanted) in zip(native, reference, strict=True):
        assert ids == wanted_ids
        np.testing.assert_allclose(logprobs, wanted, atol=1e-4)


@pytest.mark.parametrize("name", ["bert", "modernbert", "jina-bert", "mpnet", "t5"])
def test_encoders(name: str, tmp_path: Path) -> None:
    base = merging.save_case(ENCODERS[name], tmp_path / "base")
    adapter = merging.random_tensors(base, seed=1)
    path = merging.save(tmp_path / "adapter", adapter)
    prompts = [{"prompt_token_ids": merging.tokens(n, 100)} for n in (30, 4)]

    def vectors(path: Path, **options: Any) -> Any:
        options_of = {"enable_lora": True} if options else {}
        llm = LLM(str(path), dtype="float32", skip_tokenizer_init=True, **options_of)
        outputs = llm.embed(prompts, use_tqdm=False, **options)
        return [output.outputs.embedding for output in outputs]

    wanted = vectors(merging.save_merged(base, adapter, tmp_path / "merged"))
    loras = [LoRARequest("a", 1, str(path)), None]
    first, second = vectors(base.path, lora_request=loras)
    np.testing.assert_allclose(first, wanted[0], atol=1e-5)
    assert np.abs(np.subtract(second, wanted[1])).max() > 1e-3


MakeLayer = Callable[[str, np.ndarray], tuple[list[RawTensor], np.ndarray]]


def gptq(name: str, values: np.ndarray) -> tuple[list[RawTensor], np.ndarray]:
    layer = test_gptq.random_layer(
        name, *values.shape, test_gptq.CONFIG, np.random.default_rng(len(name))
    )
    return layer, test_gptq.expected(layer, test_gptq.CONFIG)


def awq(name: str, values: np.ndarray) -> tuple[list[RawTensor], np.ndarray]:
    return test_awq.make_layer(name, *values.shape, 32, np.random.default_rng(len(name)))


def hqq(name: str, values: np.ndarray) -> tuple[list[RawTensor], np.ndarray]:
    return test_hqq.make_layer(name, *values.shape, 4, 32, np.random.default_rng(len(name)))


def nf4(name: str, values: np.ndarray) -> tuple[list[RawTensor], np.ndarray]:
    rng = np.random.default_rng(len(name))
    return test_bitsandbytes.make_4bit(name, values.shape, rng, block=32)


def torchao(name: str, values: np.ndarray) -> tuple[list[RawTensor], np.ndarray]:
    rng = np.random.default_rng(len(name))
    return test_torchao.make_layer(name, values.shape, "int4", rng)


def fp8(name: str, values: np.ndarray) -> tuple[list[RawTensor], np.ndarray]:
    block = test_fp8.CONFIG["weight_block_size"]
    return test_fp8.make_layer(name, values.shape, block, np.random.default_rng(len(name)))


def w8a8(name: str, values: np.ndarray) -> tuple[list[RawTensor], np.ndarray]:
    codes, scale = test_compressed_tensors.quantise(values)
    layer = [
        RawTensor(f"{name}.weight", codes.shape, "int8", codes),
        RawTensor(f"{name}.weight_scale", scale.shape, "float32", scale.astype(np.float32)),
    ]
    return layer, codes * scale.astype(np.float32)


#: Format → its configuration, its layers, and how far rounded inputs may be from exact ones.
PACKED: dict[str, tuple[dict[str, Any], MakeLayer, float]] = {
    "awq": (test_awq.CONFIG, awq, 1e-3),
    "bitsandbytes": (test_bitsandbytes.FOUR, nf4, 1e-3),
    "gptq": (test_gptq.CONFIG, gptq, 1e-3),
    "hqq": (test_hqq.CONFIG, hqq, 1e-3),
    "torchao": (test_torchao.CONFIG, torchao, 1e-3),
    "fp8": (test_fp8.CONFIG, fp8, 1e-3),
    "w8a8": (test_compressed_tensors.CONFIG, w8a8, 0.15),
}


@pytest.mark.parametrize("name", PACKED)
def test_packed_bases(name: str, tmp_path: Path) -> None:
    config, make_layer, tolerance = PACKED[name]
    base = merging.save_case(CASES["llama-rope-default"], tmp_path / "base")
    stored: dict[str, np.ndarray] = {}
    for key, values in load_file(base.path / "model.safetensors").items():
        if key.endswith("_proj.weight"):
            layer, base.tensors[key] = make_layer(key.removesuffix(".weight"), values)
            stored |= {tensor.name: tensor.data for tensor in layer}
        else:
            stored[key] = values
    save_file(stored, base.path / "model.safetensors")
    quantised = {**base.config, "quantization_config": config}
    (base.path / "config.json").write_text(json.dumps(quantised))
    compare(base, tmp_path, tolerance)


#: Types of each matrix in the two layers; v of the first is of another type than q and k.
GGUF_TYPES = {
    "attn_q": ("Q4_K", "Q2_K"),
    "attn_k": ("Q4_K", "Q2_K"),
    "attn_v": ("Q6_K", "Q2_K"),
    "attn_output": ("Q5_K", "IQ3_S"),
    "ffn_gate": ("IQ4_XS", "Q4_1"),
    "ffn_up": ("IQ4_XS", "Q4_1"),
    "ffn_down": ("Q3_K", "IQ2_XS"),
}


def test_a_gguf_base(tmp_path: Path) -> None:
    rng, size = np.random.default_rng(2), 256
    vectors = {"output_norm": size} | {
        f"blk.{i}.{kind}_norm": size for i in range(2) for kind in ("attn", "ffn")
    }
    plain = {
        f"{name}.weight": rng.normal(1, 0.2, n).astype(np.float32) for name, n in vectors.items()
    }
    plain["token_embd.weight"] = rng.normal(0, 1, (128, size)).astype(np.float32)
    blocks = {}
    for stem, types in GGUF_TYPES.items():
        rows = size // 2 if stem in ("attn_k", "attn_v") else size
        for i, name in enumerate(types):
            kind = gguf.GGMLQuantizationType[name]
            spread = gguf.dequantize(random_blocks(name, rng, 4, size, 1e-3), kind).std()
            data = random_blocks(name, rng, rows, size, 6e-5 / spread)
            blocks[f"blk.{i}.{stem}.weight"] = kind, data
    keys = {"embedding_length": size, "feed_forward_length": size, "block_count": 2}
    keys = {f"{{arch}}.{name}": value for name, value in keys.items()}
    path = write_gguf(tmp_path / "base.gguf", keys=keys, tensors=plain, blocks=blocks)
    checkpoint = open_checkpoint(resolve_source(ModelConfig(str(path)), LoadConfig()))
    tensors = {name: to_float32(checkpoint.tensor(name)) for name in checkpoint.names()}
    config = {**checkpoint.model_info.hf_config, "architectures": ["LlamaForCausalLM"]}
    base = Base(path, tensors, json.loads(json.dumps(config, default=str)))
    compare(base, tmp_path, 5e-3, quantized_activations="int16")
