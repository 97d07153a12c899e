"""Adapters in llama.cpp's format: one GGUF file.

general.type = adapter    adapter.type = lora    adapter.lora.alpha
blk.0.attn_q.weight.lora_a          [rank, K]
blk.0.attn_q.weight.lora_b          [N, rank], rows in the order of GGUF's models
blk.0.ffn_up_exps.weight.lora_a     [experts, rank, K]
blk.0.ffn_up_exps.weight.lora_b     [experts, N, rank]
token_embd.weight.lora_a            [vocabulary, rank]
token_embd.weight.lora_b            [hidden, rank]

Of GPT-2's layers, whose matrices are [K, N] in PyTorch, llama.cpp's converter transposes the
product B A: lora_a is then B, transposed, and lora_b is A, transposed.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from galley.config import ModelInfo
from galley.errors import ModelError
from galley.loader.fields import Fields
from galley.loader.gguf import GGUFFile, TensorInfo
from galley.loader.gguf_architecture import Architecture
from galley.loader.gguf_names import ARCHITECTURES, fused_names, hf_name, hf_names, row_order
from galley.loader.tensor import RawTensor
from galley.lora.files import check_size, read_whole
from galley.lora.tensors import AdapterTensors
from galley.quant import to_float32

_TYPE = {"general.type": "adapter", "adapter.type": "lora"}
_INVOCATION = "adapter.alora.invocation_tokens"
_EMBEDDING = "token_embd.weight"
_MAX_ALPHA = 2.0**20
#: Classes whose models the converter writes as those of another.
_WRITTEN_AS = {
    "CamembertModel": "BertModel",
    "DeepseekV3ForCausalLM": "DeepseekV2ForCausalLM",
    "FalconMambaForCausalLM": "MambaForCausalLM",
    "Glm4MoeLiteForCausalLM": "DeepseekV2ForCausalLM",
    "GraniteMoeForCausalLM": "GraniteMoeSharedForCausalLM",
    "InternLM3ForCausalLM": "LlamaForCausalLM",
    "MistralForCausalLM": "LlamaForCausalLM",
    "Olmo3ForCausalLM": "Olmo2ForCausalLM",
    "RobertaModel": "BertModel",
    "XLMRobertaModel": "BertModel",
}
#: As what it writes Granite 4 where no layer is recurrent; the tensors are named alike.
_WITHOUT_STATES = (ARCHITECTURES["granite"], ARCHITECTURES["granitemoe"])


def read_gguf(path: Path, model_info: ModelInfo, most_bytes: int) -> dict[str, AdapterTensors]:
    """The adapter's modules by name of the base model's tensor.

    Args:
        most_bytes: of an adapter of this model in float32.

    Raises:
        ModelError: the file is damaged, too large, of another model or not supported.
    """
    file = GGUFFile(path, read_whole(path, most_bytes))
    architecture = _architecture_of(file, model_info)
    alpha = _alpha_of(file)
    # As float32: a format of few bits has many numbers.
    check_size(path, sum(4 * math.prod(t.shape) for t in file.tensors.values()), most_bytes)
    tensors: dict[str, AdapterTensors] = {}
    for module, (a, b) in _pairs(file).items():
        if architecture.model_type == "gpt2" and module.startswith("blk."):
            a, b = b.T, a.T
        order = row_order(module, b.shape, architecture, model_info, f"{path}: lora_b")
        # llama.cpp takes an alpha of 0 as none.
        scale = alpha / b.shape[-1] if alpha else 1.0
        tensors[module] = AdapterTensors(
            a.T if module == _EMBEDDING else a, b if order is None else b[order], scale
        )
    layers = model_info.hf_config.get("num_hidden_layers", 0)
    modules = {
        name: _fused(path, name, [tensors.pop(part) for part in parts])
        for name, parts in fused_names(architecture, layers).items()
        if all(part in tensors for part in parts)
    }
    for module, given in tensors.items():
        names = hf_names(module, architecture)
        if given.b.shape[-2] % len(names):
            raise ModelError(f"{path}: {module:.200} has an odd number of rows")
        for name, b in zip(names, np.split(given.b, len(names), axis=-2), strict=True):
            if ("{}" in name) != (b.ndim == 3):
                raise ModelError(f"{path}: {module:.200} has {b.ndim} dimensions")
            if b.ndim == 2:
                modules[name] = AdapterTensors(given.a, b, given.scale)
                continue
            for i, (expert_a, expert_b) in enumerate(zip(given.a, b, strict=True)):
                modules[name.format(i)] = AdapterTensors(expert_a, expert_b, given.scale)
    return {name.removesuffix(".weight"): given for name, given in modules.items()}


def _pairs(file: GGUFFile) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """A and B of each tensor of the model, by its name in the file; of two or three dimensions."""
    halves: dict[str, dict[str, NDArray[np.float32]]] = {}
    for info in file.tensors.values():
        module, _, kind = info.name.rpartition(".")
        if kind not in ("lora_a", "lora_b") or not module.endswith(".weight"):
            raise ModelError(f"{file.path}: tensor {info.name:.200} is not of a LoRA adapter")
        if len(info.shape) not in (2, 3) or 0 in info.shape:
            raise ModelError(f"{file.path}: tensor {info.name:.200} is of {list(info.shape)}")
        halves.setdefault(module, {})[kind] = _numbers(file, info)
    if not halves:
        raise ModelError(f"{file.path}: has no tensors")
    pairs = {}
    for module, half in halves.items():
        if len(half) != 2:
            raise ModelError(f"{file.path}: {module:.200} has {next(iter(half))} alone")
        a, b = half["lora_a"], half["lora_b"]
        if a.ndim != b.ndim or a.shape[:-2] != b.shape[:-2]:
            raise ModelError(
                f"{file.path}: {module:.200} has lora_a {list(a.shape)} and lora_b {list(b.shape)}"
            )
        pairs[module] = a, b
    return pairs


def _numbers(file: GGUFFile, info: TensorInfo) -> NDArray[np.float32]:
    """A tensor of any number format; experts' matrices one after the other while they are read."""
    data = file.data(info)
    flat = math.prod(info.shape[:-1]), info.shape[-1]
    rows = RawTensor(info.name, flat, info.type.name, data.reshape(flat[0], -1))
    try:
        return to_float32(rows).reshape(info.shape)
    except ModelError as error:
        raise ModelError(f"{file.path}: {error.message:.300}") from None


def _fused(path: Path, name: str, parts: list[AdapterTensors]) -> AdapterTensors:
    """Of a tensor that is several in the file, as the converter splits it: all have the same A."""
    first = parts[0]
    if any(part.scale != first.scale or not np.array_equal(part.a, first.a) for part in parts):
        raise ModelError(f"{path}: the parts of {name} have different lora_a: not supported")
    return AdapterTensors(first.a, np.concatenate([part.b for part in parts]), first.scale)


def _architecture_of(file: GGUFFile, model_info: ModelInfo) -> Architecture:
    for key, wanted in _TYPE.items():
        found = file.get(key)
        if not isinstance(found, str) or found != wanted:
            raise ModelError(f"{file.path}: {key} is {found!r:.80}, not {wanted!r}")
    if file.get(_INVOCATION) is not None:
        raise ModelError(f"{file.path}: {_INVOCATION} (activated LoRA) is not supported")
    name = file.get("general.architecture")
    known = ARCHITECTURES.get(name) if isinstance(name, str) else None
    if known in _WITHOUT_STATES and model_info.architecture == "GraniteMoeHybridForCausalLM":
        known = ARCHITECTURES["granitehybrid"]
    classes = model_info.architecture, _WRITTEN_AS.get(model_info.architecture)
    either = (known, known.where[1] if known is not None and known.where else None)
    entries = [entry for entry in either if entry is not None and entry.hf_class in classes]
    if not entries:
        raise ModelError(
            f"{file.path}: is an adapter of {name!r:.80}, the model is {model_info.architecture}"
        )
    architecture = min(entries, key=lambda entry: _num_unknown(entry, file))
    if architecture.model_type == "falcon_h1" and "key_multiplier" in model_info.hf_config:
        raise ModelError(
            f"{file.path}: GGUF adapters of {name} contain its multipliers: they need a GGUF model"
        )
    return architecture


def _num_unknown(entry: Architecture, file: GGUFFile) -> int:
    """Tensors without a name: two entries of one class differ in names."""
    parts = {part for parts in entry.fused.values() for part in parts}
    modules = [name.rpartition(".")[0] for name in file.tensors]
    unknown = [module for module in modules if hf_name(module, entry) == module]
    return sum(name.removesuffix(".weight").rpartition(".")[2] not in parts for name in unknown)


def _alpha_of(file: GGUFFile) -> float:
    key = "adapter.lora.alpha"
    fields = Fields({key: file.get(key)}, str(file.path))
    alpha = fields.number(key)
    if abs(alpha) > _MAX_ALPHA:
        raise fields.wrong(key, f"at most {_MAX_ALPHA:.0f}")
    return alpha
