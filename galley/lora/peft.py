"""Adapters as PEFT saves them: adapter_config.json and adapter_model.safetensors.

base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight    [rank, K]
base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight    [N, rank]
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from galley.config import ModelInfo
from galley.errors import ModelError
from galley.loader.hf_names import model_name
from galley.loader.safetensors import SafetensorsFile
from galley.loader.text_part import TEXT_OF, text_name
from galley.lora.config import read_config
from galley.lora.files import read_whole
from galley.lora.tensors import AdapterTensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
#: Values of --max-lora-rank.
MAX_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_PREFIX = "base_model.model."
_FLOATS = ("float32", "float16", "bfloat16")
#: Ends of tensors that are something else.
_REFUSED = {
    "lora_magnitude_vector": "DoRA is not supported",
    "lora_embedding_A": "adapters of embeddings are not supported",
    "lora_embedding_B": "adapters of embeddings are not supported",
    "token_adapter": "trained tokens are not supported",
}


def read_peft(path: Path, model_info: ModelInfo, most_bytes: int) -> dict[str, AdapterTensors]:
    """The adapter's modules by name of the base model's tensor.

    The file is read as a whole: one that is written to later changes nothing.

    Args:
        path: a folder.
        most_bytes: of an adapter of this model in float32.

    Raises:
        ModelError: a file is missing, damaged, too large or not supported.
    """
    config = read_config(path / CONFIG)
    file = SafetensorsFile(path / WEIGHTS, _read(path, most_bytes))
    halves: dict[str, dict[str, NDArray[np.generic]]] = {}
    for name in file.names():
        module, letter = _split(path, name)
        raw = file.tensor(name)
        if raw.dtype not in _FLOATS or len(raw.shape) != 2:
            raise ModelError(f"{path}: tensor {name:.200} is {raw.dtype} of {list(raw.shape)}")
        halves.setdefault(module, {})[letter] = raw.data
    if not halves:
        raise ModelError(f"{path}: {WEIGHTS} has no tensors")
    modules: dict[str, AdapterTensors] = {}
    for module, half in halves.items():
        if len(half) != 2:
            raise ModelError(f"{path}: {module:.200} has lora_{next(iter(half))} alone")
        if half["A"].shape[0] != config.rank_of(module) or not half["A"].shape[0]:
            raise ModelError(
                f"{path}: {module:.200} has rank {half['A'].shape[0]}, {CONFIG} says "
                f"{config.rank_of(module)}"
            )
        scale = config.scale_of(module)
        modules[_renamed(module, model_info)] = AdapterTensors(half["A"], half["B"], scale)
    return modules


def _read(path: Path, most_bytes: int) -> bytes:
    weights = path / WEIGHTS
    if not weights.is_file():
        torch_file = path / "adapter_model.bin"
        hint = " (adapter_model.bin is not supported)" if torch_file.is_file() else ""
        raise ModelError(f"{weights}: there is no such file{hint}")
    return read_whole(weights, most_bytes)


def _split(path: Path, name: str) -> tuple[str, str]:
    """The module of a tensor, and "A" or "B"."""
    module, _, kind = name.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".")
    if name.startswith(_PREFIX) and kind in ("lora_A", "lora_B") and name.endswith(".weight"):
        return module, kind[-1]
    for end, reason in _REFUSED.items():
        if end in name:
            raise ModelError(f"{path}: tensor {name:.200}: {reason}")
    raise ModelError(
        f"{path}: tensor {name:.200} is not of a LoRA adapter of linear layers "
        "(modules_to_save is not supported)"
    )


def _renamed(module: str, model_info: ModelInfo) -> str:
    """As the model calls the tensor."""
    tensor = f"{module}.weight"
    is_part = TEXT_OF in model_info.hf_config
    wanted = text_name(tensor) if is_part else model_name(model_info.architecture, tensor)
    return (wanted or tensor).removesuffix(".weight")
