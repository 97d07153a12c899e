"""Small valid files: some families, every tensor type of the registry, every kind of tokenizer."""

from __future__ import annotations

import io
import json
import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from galley.config import ModelInfo
from galley.loader.ggml_types import GGML_TYPES
from galley.loader.gguf_architecture import LLAMA_NAMES, LLAMA_TOP
from galley.loader.gguf_names import ARCHITECTURES as GGUF_ARCHITECTURES
from galley.loader.safetensors import DTYPES, TWO_A_BYTE
from galley.models.footprint import tensor_shapes
from galley.text.byte_level import BYTE_OF_CHAR
from tests.fuzz.readers.gguf import (
    ARRAY,
    BOOL,
    F32,
    I32,
    STRING,
    U32,
    File,
    Key,
    Tensor,
)

#: Architectures of GGUF whose layers are those of Llama.
GGUF_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
#: Families with the keys of Llama's config.
FAMILIES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Phi3ForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
)
#: A family with layers for further tokens.
MTP_FAMILY = "MiMoForCausalLM"
VOCAB, HIDDEN, INNER, HEAD = 16, 256, 16, 16
#: Size of an expert, whose inputs are whole blocks of MXFP4.
WIDE = 32
TEMPLATE = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}{{ bos_token }}{% endif %}"
    "<|{{ m['role'] }}|>{{ m.content | trim }}{% if not loop.last %}{{ '\\n' * 2 }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass
class Seed:
    """One valid input.

    Attributes:
        kind: what reads it (`targets.TARGETS`).
        files: name → content; all lie in one folder.
        hot: names of those that are changed.
        gguf: the file of a GGUF seed as values.
        header: name → length of the part that holds no numbers of tensors.
    """

    kind: str
    name: str
    files: dict[str, bytes]
    hot: list[str]
    gguf: File | None = None
    header: dict[str, int] = field(default_factory=dict)


def all_seeds() -> list[Seed]:
    """Made of the registries, so that a format or family that is added is in by itself."""
    return [
        *_gguf_models(),
        *_gguf_vocabularies(),
        *_directories(),
        *_tokenizers(),
        *_templates(),
        *_adapters(),
        *_heads(),
        _packed(),
    ]


def base_config(family: str) -> dict[str, Any]:
    config: dict[str, Any] = {
        "architectures": [family],
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": HEAD,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "eos_token_id": [2],
        "bos_token_id": 1,
        "torch_dtype": "bfloat16",
    }
    if family.startswith("Qwen"):
        config |= {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 0}
    elif family.startswith("Mistral"):
        config["sliding_window"] = 7
    elif family.startswith("GptOss"):
        config |= {"model_type": "gpt_oss", "num_local_experts": 2, "num_experts_per_tok": 1}
        config |= {
            "intermediate_size": WIDE,
            "layer_types": ["full_attention"],
            "attention_bias": True,
        }
        config |= {"tie_word_embeddings": False, "sliding_window": 9}
    return config


def _shapes(family: str) -> dict[str, tuple[int, ...]]:
    model_info = ModelInfo(
        architecture=family,
        hf_config=base_config(family),
        vocab_size=VOCAB,
        max_position=64,
        dtype="bfloat16",
    )
    return tensor_shapes(model_info)


# ------------------------------------------------------------------------------------------ GGUF


def _gguf_models() -> Iterator[Seed]:
    names = GGUF_FAMILIES
    for i, kind in enumerate(sorted(GGML_TYPES)):
        yield _gguf_model(names[i % len(names)], kind)
    for name in names:
        for dtype in ("float32", "Q4_0"):
            kind = next(n for n, t in GGML_TYPES.items() if t.name == dtype)
            yield _gguf_model(name, kind)


def _gguf_model(arch: str, kind: int) -> Seed:
    back = {ours: theirs for theirs, ours in (LLAMA_TOP | LLAMA_NAMES).items()}
    tensors = []
    rng = np.random.default_rng(kind)
    for name, shape in _shapes(GGUF_ARCHITECTURES[arch].hf_class).items():
        stem, _, last = name.rpartition(".")
        layer = stem.removeprefix("model.layers.0.")
        theirs = f"blk.0.{back[layer]}.{last}" if layer != stem else f"{back[stem]}.{last}"
        fits = len(shape) == 2 and shape[1] % GGML_TYPES[kind].block == 0
        tensors.append(_gguf_tensor(theirs, shape, kind if fits else 0, rng))
    file = File(_gguf_keys(arch), tensors)
    data, header = file.encode()
    seed_name = f"{arch} {GGML_TYPES[kind].name}"
    return Seed("gguf", seed_name, {"m.gguf": data}, ["m.gguf"], file, {"m.gguf": header})


def _gguf_tensor(name: str, shape: tuple[int, ...], kind: int, rng: np.random.Generator) -> Tensor:
    what = GGML_TYPES[kind]
    size = int(np.prod(shape)) // what.block * what.block_bytes
    if kind == 0:
        data = rng.normal(0, 0.1, shape).astype("<f4").tobytes()
    else:
        # Bytes below 60: no float16 among them is infinite or not a number.
        data = rng.integers(0, 60, size, np.uint8).tobytes()
    return Tensor(name, list(shape[::-1]), kind, data)


def _gguf_keys(arch: str) -> list[Key]:
    numbers = {
        "context_length": 64,
        "embedding_length": HIDDEN,
        "block_count": 1,
        "feed_forward_length": INNER,
        "attention.head_count": 1,
        "attention.head_count_kv": 1,
        "attention.key_length": HEAD,
        "attention.value_length": HEAD,
        "rope.dimension_count": HEAD,
    }
    return [
        Key("general.architecture", STRING, arch),
        Key("general.alignment", U32, 32),
        *(Key(f"{arch}.{name}", U32, value) for name, value in numbers.items()),
        Key(f"{arch}.attention.layer_norm_rms_epsilon", F32, 1e-5),
        Key(f"{arch}.rope.freq_base", F32, 10000.0),
        Key(f"{arch}.rope.scaling.type", STRING, "yarn"),
        Key(f"{arch}.rope.scaling.factor", F32, 2.0),
        Key("general.sampling.temp", F32, 0.5),
        Key("tokenizer.ggml.bos_token_id", U32, 1),
        Key("tokenizer.ggml.eos_token_id", U32, 2),
        Key("tokenizer.chat_template", STRING, TEMPLATE),
        Key("split.count", U32, 0),
    ]


def _bpe_vocabulary() -> tuple[list[str], list[tuple[str, str]]]:
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "w")]
    tokens = ["<s>", "</s>", "<pad>", *sorted(BYTE_OF_CHAR), *("".join(m) for m in merges)]
    return tokens, merges


def _gguf_vocabularies() -> Iterator[Seed]:
    tokens, merges = _bpe_vocabulary()
    kinds = [3] * 3 + [1] * (len(tokens) - 3)
    for pre in ("gpt-2", "llama-bpe", "qwen2", "deepseek-v3"):
        yield _gguf_vocabulary(
            f"gpt2 {pre}",
            [
                Key("tokenizer.ggml.model", STRING, "gpt2"),
                Key("tokenizer.ggml.pre", STRING, pre),
                Key("tokenizer.ggml.tokens", ARRAY, (STRING, tokens)),
                Key("tokenizer.ggml.token_type", ARRAY, (I32, kinds)),
                Key("tokenizer.ggml.merges", ARRAY, (STRING, [" ".join(m) for m in merges])),
                Key("tokenizer.ggml.add_bos_token", BOOL, True),
            ],
        )
    pieces = _pieces()
    yield _gguf_vocabulary(
        "llama",
        [
            Key("tokenizer.ggml.model", STRING, "llama"),
            Key("tokenizer.ggml.tokens", ARRAY, (STRING, [p[0] for p in pieces])),
            Key("tokenizer.ggml.scores", ARRAY, (F32, [p[1] for p in pieces])),
            Key("tokenizer.ggml.token_type", ARRAY, (I32, [p[2] for p in pieces])),
            Key("tokenizer.ggml.unknown_token_id", U32, 0),
            Key("tokenizer.ggml.add_space_prefix", BOOL, True),
        ],
    )


def _gguf_vocabulary(name: str, keys: list[Key]) -> Seed:
    more = [
        Key("tokenizer.ggml.bos_token_id", U32, 1),
        Key("tokenizer.ggml.eos_token_id", U32, 2),
        Key("tokenizer.ggml.fim_pre_token_id", U32, 3),
        Key("tokenizer.chat_template", STRING, TEMPLATE),
        Key("tokenizer.chat_template.tool_use", STRING, "{{ tools | tojson }}"),
    ]
    file = File([*keys, *more])
    data, header = file.encode()
    return Seed("tokenizer", name, {"t.gguf": data}, ["t.gguf"], file, {"t.gguf": header})


# ------------------------------------------------------------------------------------ directories


def _directories() -> Iterator[Seed]:
    for i, dtype in enumerate(DTYPES):
        yield _directory(FAMILIES[i % len(FAMILIES)], dtype)
    for family in FAMILIES:
        yield _directory(family, "BF16")
        yield _directory(family, "BF16", scaling={"rope_type": "llama3", **_LLAMA3})
        yield _directory(family, "F32", scaling={"rope_type": "yarn", "factor": 4.0})
        yield _directory(family, "F16", scaling={"type": "dynamic", "factor": 2.0})
        yield _directory(family, "I8")
    for method in _METHODS:
        yield _quantised(method)
    yield _sharded()
    yield _consolidated()
    yield _experts()
    yield _pickled()


_LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
W8A8 = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"},
            "input_activations": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "token",
                "dynamic": True,
            },
        }
    },
    "ignore": ["lm_head"],
}


Layer = dict[str, tuple[str, tuple[int, ...]]]
_W4A16 = {
    "num_bits": 4,
    "type": "int",
    "symmetric": False,
    "strategy": "group",
    "group_size": 16,
}
_NVFP4 = {
    "num_bits": 4,
    "type": "float",
    "symmetric": True,
    "strategy": "tensor_group",
    "group_size": 16,
}
_HQQ = {"nbits": 4, "group_size": 16, "axis": 1}
_KV = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}
#: Name → quantization_config, and the tensors of a layer of [n, k] by the ends of their names.
_METHODS: dict[str, tuple[dict[str, Any], Callable[[int, int], Layer]]] = {
    "AWQ": (
        {"quant_method": "awq", "bits": 4, "group_size": 16, "zero_point": True},
        lambda n, k: {
            "qweight": ("I32", (k, n // 8)),
            "qzeros": ("I32", (k // 16, n // 8)),
            "scales": ("F16", (k // 16, n)),
        },
    ),
    "AWQ gemv": (
        {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemv"},
        lambda n, k: {
            "qweight": ("I32", (n, k // 8)),
            "qzeros": ("I32", (n, 2)),
            "scales": ("F16", (n, 16)),
        },
    ),
    "AWQ gemv_fast": (
        {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemv_fast"},
        lambda n, k: (
            {"weight": ("BF16", (n, k))}
            if k % 64
            else {
                "qweight": ("I16", (n // 4, k)),
                "qzeros": ("F16", (16, n)),
                "scales": ("F16", (16, n)),
            }
        ),
    ),
    "AWQ marlin": (
        {
            "quant_method": "awq",
            "bits": 4,
            "group_size": 16,
            "version": "marlin",
            "zero_point": False,
        },
        lambda n, k: (
            {"weight": ("BF16", (n, k))}
            if n % 64
            else {"qweight": ("I32", (k // 16, 2 * n)), "scales": ("F16", (k // 16, n))}
        ),
    ),
    "HQQ": (
        {"quant_method": "hqq", "quant_config": {"weight_quant_params": _HQQ}},
        lambda n, k: {
            "W_q": ("U8", (n * k // 32, 16)),
            "scale": ("F16", (n * k // 16, 1)),
            "zero": ("F16", (n * k // 16, 1)),
            "shape": ("I64", (2,)),
        },
    ),
    "FP8": (
        {"quant_method": "fp8", "weight_block_size": [8, 64], "kv_cache_scheme": _KV},
        lambda n, k: {
            "weight": ("F8_E4M3", (n, k)),
            "weight_scale_inv": ("F32", (-(-n // 8), -(-k // 64))),
        },
    ),
    "GPTQ": (
        {"quant_method": "gptq", "bits": 4, "group_size": 16},
        lambda n, k: {
            "qweight": ("I32", (k // 8, n)),
            "qzeros": ("I32", (k // 16, n // 8)),
            "scales": ("F16", (k // 16, n)),
        },
    ),
    "GPTQ in order": (
        {"quant_method": "gptq", "bits": 2, "group_size": 16, "desc_act": True},
        lambda n, k: {
            "qweight": ("I32", (k // 16, n)),
            "qzeros": ("I32", (k // 16, n // 16)),
            "scales": ("F16", (k // 16, n)),
            "g_idx": ("I32", (k,)),
        },
    ),
    "AutoRound": (
        {"quant_method": "auto-round", "bits": 2, "group_size": 16, "extra_config": {}},
        lambda n, k: {
            "qweight": ("I32", (k // 16, n)),
            "qzeros": ("I32", (k // 16, n // 16)),
            "scales": ("F16", (k // 16, n)),
        },
    ),
    "NVFP4": (
        {
            "quant_method": "compressed-tensors",
            "format": "nvfp4-pack-quantized",
            "config_groups": {"group_0": {"targets": ["re:.*"], "weights": _NVFP4}},
        },
        lambda n, k: {
            "weight_packed": ("U8", (n, k // 2)),
            "weight_scale": ("F8_E4M3", (n, k // 16)),
            "weight_global_scale": ("F32", (1,)),
        },
    ),
    "ModelOpt": (
        {"quant_method": "modelopt", "quant_algo": "NVFP4"},
        lambda n, k: {
            "weight": ("U8", (n, k // 2)),
            "weight_scale": ("F8_E4M3", (n, k // 16)),
            "weight_scale_2": ("F32", ()),
        },
    ),
    "Quark": (
        {"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp4"}}},
        lambda n, k: {"weight": ("U8", (n, k // 2)), "weight_scale": ("U8", (n, k // 32))},
    ),
    "torchao": (
        {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}}},
        lambda n, k: {
            "_weight_qdata": ("I8", (n, k)),
            "_weight_scale": ("BF16", (n, 1)),
            "_weight_zero_point": ("I8", (n, 1)),
        },
    ),
    "LLM.int8": (
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        lambda n, k: {"weight": ("I8", (n, k)), "SCB": ("F32", (n,))},
    ),
    "W4A16": (
        {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": _W4A16}},
        },
        lambda n, k: {
            "weight_packed": ("I32", (n, k // 8)),
            "weight_shape": ("I64", (2,)),
            "weight_scale": ("BF16", (n, k // 16)),
            "weight_zero_point": ("I32", (n // 8, k // 16)),
        },
    ),
}


def _quantised(method: str) -> Seed:
    family = FAMILIES[0]
    quantization, tensors = _METHODS[method]
    arrays: Layer = {}
    for name, shape in _shapes(family).items():
        if len(shape) == 2 and "embed" not in name:
            layer = name.removesuffix("weight")
            arrays |= {layer + kind: array for kind, array in tensors(*shape).items()}
        else:
            arrays[name] = ("BF16", shape)
    if "kv_cache_scheme" in quantization:
        for scale in ("k_scale", "v_scale"):
            arrays[f"model.layers.0.self_attn.{scale}"] = ("F32", (1,))
    data, header = _safetensors(arrays)
    config = base_config(family) | {"quantization_config": quantization}
    files = {"config.json": json.dumps(config).encode(), "model.safetensors": data}
    return Seed("directory", method, files, list(files), header={"model.safetensors": header})


def _directory(family: str, dtype: str, scaling: dict[str, Any] | None = None) -> Seed:
    config = base_config(family) | {"rope_scaling": scaling}
    quantised = dtype == "I8"
    if quantised:
        config["quantization_config"] = W8A8
    generation = {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "eos_token_id": [2, 3]}
    data, header = _safetensors(_arrays(family, dtype))
    files = {
        "config.json": json.dumps(config).encode(),
        "generation_config.json": json.dumps(generation).encode(),
        "model.safetensors": data,
    }
    hot = ["config.json", "config.json", "model.safetensors", "generation_config.json"]
    return Seed("directory", f"{family} {dtype}", files, hot, header={"model.safetensors": header})


def _arrays(family: str, dtype: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Tensor name → (safetensors dtype, shape)."""
    arrays = {}
    for name, shape in _shapes(family).items():
        matrix = len(shape) == 2 and "embed" not in name
        arrays[name] = (dtype if matrix else "BF16" if dtype == "I8" else dtype, shape)
        if dtype == "I8" and matrix:
            arrays[name.replace(".weight", ".weight_scale")] = ("F32", (shape[0], 1))
    return arrays


def _safetensors(arrays: dict[str, tuple[str, tuple[int, ...]]]) -> tuple[bytes, int]:
    """(the file, length of its header)."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at, parts = 0, []
    rng = np.random.default_rng(1)
    for name, (dtype, shape) in arrays.items():
        size = int(np.prod(shape)) * DTYPES[dtype][1].itemsize
        size = size // 2 if dtype == TWO_A_BYTE else size
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        parts.append(rng.integers(0, 60, size, np.uint8).tobytes())
        at += size
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + b"".join(parts), 8 + len(raw)


def _sharded() -> Seed:
    family = FAMILIES[0]
    arrays = _arrays(family, "F32")
    halves = [dict(list(arrays.items())[i::2]) for i in range(2)]
    names = [f"model-{i + 1:05}-of-00002.safetensors" for i in range(2)]
    weight_map = {name: names[i] for i, half in enumerate(halves) for name in half}
    files = {name: _safetensors(half)[0] for name, half in zip(names, halves, strict=True)}
    files["config.json"] = json.dumps(base_config(family)).encode()
    files["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    header = {name: _safetensors(half)[1] for name, half in zip(names, halves, strict=True)}
    hot = ["model.safetensors.index.json", *names]
    return Seed("directory", "sharded", files, hot, header=header)


def _consolidated() -> Seed:
    """Mistral's own files."""
    names = {".self_attn.": ".attention.", "q_proj": "wq", "k_proj": "wk", "v_proj": "wv"}
    names |= {"o_proj": "wo", ".mlp.": ".feed_forward.", "gate_proj": "w1", "down_proj": "w2"}
    names |= {"up_proj": "w3", "model.embed_tokens": "tok_embeddings", "model.": ""}
    names |= {"input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm"}
    arrays = {}
    for name, shape in _shapes("MistralForCausalLM").items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        arrays[name] = ("BF16", shape)
    params = {"dim": HIDDEN, "hidden_dim": INNER, "n_layers": 1, "n_heads": 1, "n_kv_heads": 1}
    params |= {"head_dim": HEAD, "vocab_size": VOCAB, "max_seq_len": 64, "tied_embeddings": True}
    data, header = _safetensors(arrays)
    files = {"params.json": json.dumps(params).encode(), "consolidated.safetensors": data}
    headers = {"consolidated.safetensors": header}
    return Seed("directory", "consolidated", files, list(files), header=headers)


def _experts() -> Seed:
    """gpt-oss: experts as blocks and scales."""
    family = "GptOssForCausalLM"
    arrays: Layer = {}
    for name, shape in _shapes(family).items():
        if ".experts." not in name:
            arrays[name] = ("BF16", shape)
    at = "model.layers.0.mlp.experts"
    for name, (n, k) in {"gate_up_proj": (2 * WIDE, HIDDEN), "down_proj": (HIDDEN, WIDE)}.items():
        arrays |= {
            f"{at}.{name}_blocks": ("U8", (2, n, k // 32, 16)),
            f"{at}.{name}_scales": ("U8", (2, n, k // 32)),
            f"{at}.{name}_bias": ("BF16", (2, n)),
        }
    data, header = _safetensors(arrays)
    config = base_config(family) | {"quantization_config": {"quant_method": "mxfp4"}}
    files = {"config.json": json.dumps(config).encode(), "model.safetensors": data}
    return Seed("directory", "experts", files, list(files), header={"model.safetensors": header})


def _pickled() -> Seed:
    """PyTorch's files."""
    import torch

    family = FAMILIES[0]
    rng = np.random.default_rng(0)
    tensors = {
        name: torch.from_numpy(rng.standard_normal(shape, np.float32))
        for name, shape in _shapes(family).items()
    }
    stream = io.BytesIO()
    torch.save(tensors, stream)
    name, data = "pytorch_model.bin", stream.getvalue()
    files = {"config.json": json.dumps(base_config(family)).encode(), name: data}
    # The program that makes the tensors is the first file of the archive.
    return Seed("directory", "pickled", files, [name] * 3 + ["config.json"], header={name: 2048})


# -------------------------------------------------------------------------------------- adapters


def _adapters() -> Iterator[Seed]:
    """Of PEFT and of llama.cpp."""
    matrices = {"self_attn.q_proj": (HEAD, HIDDEN), "mlp.down_proj": (HIDDEN, INNER)}
    arrays: Layer = {}
    for name, (n, k) in matrices.items():
        stem = f"base_model.model.model.layers.0.{name}"
        arrays[f"{stem}.lora_A.weight"] = ("F32", (2, k))
        arrays[f"{stem}.lora_B.weight"] = ("BF16", (n, 2))
    data, header = _safetensors(arrays)
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj", "down_proj"],
    }
    name = "adapter_model.safetensors"
    files = {"adapter_config.json": json.dumps(config).encode(), name: data}
    yield Seed("adapter", "peft", files, list(files), header={name: header})
    back = {theirs: ours for ours, theirs in LLAMA_NAMES.items()}
    tensors = []
    for name, (n, k) in matrices.items():
        for half, shape in (("lora_a", (2, k)), ("lora_b", (n, 2))):
            tensors.append(_gguf_tensor(f"blk.0.{back[name]}.weight.{half}", shape, 0, _RNG))
    keys = [
        Key("general.architecture", STRING, "llama"),
        Key("general.type", STRING, "adapter"),
        Key("adapter.type", STRING, "lora"),
        Key("adapter.lora.alpha", F32, 4.0),
    ]
    file = File(keys, tensors)
    data, length = file.encode()
    yield Seed("adapter", "gguf", {"a.gguf": data}, ["a.gguf"], file, {"a.gguf": length})


def _heads() -> Iterator[Seed]:
    """Draft heads of a model of one layer (`targets.heads`). A file says of which kind they are."""
    own = base_config(FAMILIES[0])
    del own["architectures"]
    size, matrix, pair, table = (HIDDEN,), (HIDDEN, HIDDEN), (HIDDEN, 2 * HIDDEN), (VOCAB, HIDDEN)
    medusa = {"model_type": "medusa", "num_heads": 1, "num_hidden_layers": 1}
    mlp = {"model_type": "mlp_speculator", "n_predict": 1, "emb_dim": HIDDEN}
    eagle = {
        name.removeprefix("model."): shape
        for name, shape in _shapes(FAMILIES[0]).items()
        if ".layers." in name and "input_layernorm" not in name
    }
    mtp = {
        name.replace(".layers.0.", ".mtp_layers.0."): shape
        for name, shape in _shapes(MTP_FAMILY).items()
        if ".layers." in name
    }
    for name in ("token_layernorm", "hidden_layernorm", "final_layernorm"):
        mtp[f"model.mtp_layers.0.{name}.weight"] = size
    heads: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]]]] = {
        "medusa": (medusa, {"lm_heads.0.weight": table, "blocks.0.layers.0.weight": matrix}),
        "mlp_speculator": (
            mlp,
            {"emb.0.weight": table, "head.0.weight": table, "proj.0.weight": matrix}
            | {"ln.0.weight": size, "ln.0.bias": size},
        ),
        "eagle": ({}, eagle | {"fc.weight": pair}),
        "mtp": (
            {"architectures": [MTP_FAMILY]},
            mtp | {"model.mtp_layers.0.input_proj.weight": pair},
        ),
    }
    for method, (config, shapes) in heads.items():
        data, header = _safetensors({name: ("BF16", shape) for name, shape in shapes.items()})
        files = {
            "config.json": json.dumps(own | config).encode(),
            "model.safetensors": data,
            "method": method.encode(),
        }
        hot = ["config.json", "model.safetensors"]
        yield Seed("heads", method, files, hot, header={"model.safetensors": header})


_RNG = np.random.default_rng(5)


# ------------------------------------------------------------------------------------ tokenizers


def _tokenizers() -> Iterator[Seed]:
    config = {
        "bos_token": "<s>",
        "eos_token": {"content": "</s>", "special": True},
        "add_bos_token": True,
        "chat_template": [{"name": "default", "template": TEMPLATE}],
        "additional_special_tokens": ["<|user|>"],
        "added_tokens_decoder": {"0": {"content": "<s>", "special": True}},
        "tokenizer_class": "GPT2Tokenizer",
        "model_max_length": 1000000000000000019884624838656,
    }
    side = {
        "tokenizer_config.json": json.dumps(config).encode(),
        "special_tokens_map.json": json.dumps({"unk_token": "<pad>"}).encode(),
        "chat_template.jinja": TEMPLATE.encode(),
    }
    plain = {k: v for k, v in config.items() if k != "added_tokens_decoder"}
    for name, tokenizer in _library_tokenizers():
        if name != "byte-level":
            side["tokenizer_config.json"] = json.dumps(plain).encode()
        files = {"tokenizer.json": tokenizer.to_str().encode(), **side}
        hot = ["tokenizer.json"] * 3 + ["tokenizer_config.json", "special_tokens_map.json"]
        yield Seed("tokenizer", name, files, hot)
    for unigram in (False, True):
        model = {"tokenizer.model": _sentencepiece_model(unigram), **side}
        yield Seed("tokenizer", f"model {unigram}", model, ["tokenizer.model"])
    tokens, merges = _bpe_vocabulary()
    lines = "#version: 0.2\n" + "\n".join(" ".join(m) for m in merges) + "\n"
    vocab = {"vocab.json": json.dumps({t: i for i, t in enumerate(tokens)}).encode()}
    files = {**vocab, "merges.txt": lines.encode(), **side}
    yield Seed("tokenizer", "vocab and merges", files, ["vocab.json", "merges.txt"])


def _library_tokenizers() -> Iterator[tuple[str, tokenizers.Tokenizer]]:
    tokens, merges = _bpe_vocabulary()
    bpe = tokenizers.Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(r"\p{N}{1,3}| ?\p{L}+|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    bpe.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
    )
    yield "byte-level", bpe
    pieces = [(token, score) for token, score, _ in _pieces()]
    unigram = tokenizers.Tokenizer(models.Unigram(pieces, 0, byte_fallback=True))
    unigram.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.decoder = decoders.Metaspace()
    yield "unigram", unigram
    words = {t: i for i, t in enumerate(["[UNK]", "[CLS]", "[SEP]", "hello", "##o", "hell", "w"])}
    wordpiece = tokenizers.Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    wordpiece.normalizer = normalizers.BertNormalizer()
    wordpiece.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    wordpiece.decoder = decoders.WordPiece()
    wordpiece.enable_truncation(8)
    wordpiece.enable_padding(length=8)
    yield "wordpiece", wordpiece
    level = tokenizers.Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    level.pre_tokenizer = pre_tokenizers.Whitespace()
    yield "words", level


def _pieces() -> list[tuple[str, float, int]]:
    """(piece, score, kind) of a small SentencePiece vocabulary with bytes."""
    special = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), ("<tool>", 0.0, 4)]
    of_bytes = [(f"<0x{i:02X}>", 0.0, 6) for i in range(256)]
    texts = ["▁", "h", "e", "l", "o", "w", "he", "ll", "hell", "hello", "▁hello", "▁w"]
    return special + of_bytes + [(text, -float(i), 1) for i, text in enumerate(texts)]


def _sentencepiece_model(unigram: bool) -> bytes:
    parts = []
    for token, score, kind in _pieces():
        piece = (
            _field(1, token.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18" + _varint(kind)
        )
        parts.append(_field(1, piece))
    trainer = b"\x18" + _varint(1 if unigram else 2) + _varint(40 << 3) + _varint(0)
    # A compiled normalisation that changes nothing: size of the trie, trie, texts.
    charsmap = struct.pack("<I", 1024) + bytes(1024) + b"a\0" if unigram else b""
    normalizer = _field(1, b"x") + _field(2, charsmap) + b"\x18\x01\x20\x01"
    return b"".join(parts) + _field(2, trainer) + _field(3, normalizer)


def _field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


# --------------------------------------------------------------------------------------- the rest

_TEMPLATES = (
    TEMPLATE,
    "{% set ns = namespace(n=0) %}{% for m in messages[1:] | reverse %}{% set ns.n = ns.n + 1 %}"
    "{{ m.content.split('x')[-1].strip() ~ ns.n }}{% endfor %}{% generation %}a{% endgeneration %}",
    "{% macro f(x, y=2) %}{{ x * y }}{% if y %}{{ f(x, y - 1) }}{% endif %}{% endmacro %}"
    "{{ f('ab', 3) }}{{ tools | tojson(indent=2) }}{{ '%s-%05d' | format('a', 3) }}",
    "{{ messages | map(attribute='content') | join(',') }}{{ messages | selectattr('role', "
    "'equalto', 'user') | list | length }}{{ range(3) | sum }}{{ 'a' | center(20) }}"
    "{{ strftime_now('%Y') }}{% if messages is defined and messages is not string %}x{% endif %}",
    "{% for a in messages %}{% for k, v in a.items() %}{{ k | upper }}={{ v | replace('a', 'bb') "
    "}}{% endfor %}{% endfor %}{{ [1, 2, 3] | batch(2) | list }}{{ 'a b' | indent(2) }}"
    "{{ '{:>5}'.format('x') }}{{ 'x'.ljust(9) }}{{ cycler(1).next() }}{{ dict(a=1) | dictsort }}",
)


def _templates() -> Iterator[Seed]:
    for i, template in enumerate(_TEMPLATES):
        yield Seed("template", str(i), {"t.jinja": template.encode()}, ["t.jinja"])


def _packed() -> Seed:
    """A file of packed weights, as the cache on disk keeps them."""
    from galley.kernels.weights import pack
    from galley.quant import QuantizedWeight
    from galley.runner.packed_file import PackedMatrix, write_packed

    rng = np.random.default_rng(0)
    dense = pack(QuantizedWeight(dense=rng.standard_normal((8, 32)).astype(np.float32)), "bf16")
    codes = rng.integers(0, 16, (32, 64), np.uint8)
    scale = rng.standard_normal((32, 2)).astype(np.float16)
    coded = pack(QuantizedWeight(q=codes, bits=4, group=32, zero=8, scale=scale), "bf16")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "w"
        write_packed(path, [PackedMatrix("table", [dense]), PackedMatrix("rows", [coded, dense])])
        data = path.read_bytes()
    return Seed("packed", "weights", {"w": data}, ["w"], header={"w": 500})
