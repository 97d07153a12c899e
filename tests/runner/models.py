"""The default model in other number formats, in memory, and the same weights in transformers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import torch
import transformers

from galley.config import EngineConfig, LoadConfig, ModelConfig, ModelInfo
from galley.config.resolve import Machine, from_kwargs, resolve
from galley.loader import Checkpoint, RawTensor, open_checkpoint, resolve_source
from galley.loader.tensor import TensorHeader
from galley.quant import to_float32
from galley.runner.runner import Runner

Arrays = dict[str, np.ndarray]
TEXT = Path(__file__).parents[1] / "data" / "opticks.txt"
MACHINE = Machine(num_cores=2, available_memory=8 * 2**30)


class ArrayCheckpoint:
    """A checkpoint in memory: name → raw tensor."""

    def __init__(self, model_info: ModelInfo, tensors: dict[str, RawTensor]) -> None:
        self.model_info = dataclasses.replace(model_info, source="")
        self._tensors = tensors

    def names(self) -> list[str]:
        return list(self._tensors)

    def header(self, name: str) -> TensorHeader:
        return TensorHeader(self._tensors[name].shape, self._tensors[name].dtype)

    def tensor(self, name: str) -> RawTensor:
        return self._tensors[name]


def default_checkpoint(path: Path | str = "") -> Checkpoint:
    """The built-in model's, or that of a file cut from it."""
    return open_checkpoint(resolve_source(ModelConfig(str(path)), LoadConfig()))


def dequantised(checkpoint: Checkpoint) -> Arrays:
    """float32 values of every tensor."""
    return {name: to_float32(checkpoint.tensor(name)) for name in checkpoint.names()}


def rounded(arrays: Arrays) -> Arrays:
    """The same, each value the nearest bfloat16."""
    return {k: a.astype(ml_dtypes.bfloat16).astype(np.float32) for k, a in arrays.items()}


def in_format(model_info: ModelInfo, arrays: Arrays, name: str) -> ArrayCheckpoint:
    """Matrices in a GGUF type, "bfloat16" or "float32", vectors in float32."""

    def tensors() -> Iterator[RawTensor]:
        for key, a in arrays.items():
            if a.ndim == 1 or name == "float32":
                yield RawTensor(key, a.shape, "float32", a)
            elif name == "bfloat16":
                yield RawTensor(key, a.shape, name, a.astype(ml_dtypes.bfloat16))
            else:
                data = gguf.quantize(a, gguf.GGMLQuantizationType[name])
                yield RawTensor(key, a.shape, name, data)

    return ArrayCheckpoint(model_info, {t.name: t for t in tensors()})


def torch_model(model_info: ModelInfo, arrays: Arrays) -> torch.nn.Module:
    """transformers' model with these weights, float32."""
    config = transformers.LlamaConfig(**model_info.hf_config)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    model = model.to_empty(device="cpu")
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    state = {k: torch.from_numpy(np.ascontiguousarray(a)) for k, a in arrays.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert set(missing) <= {"lm_head.weight"}
    assert not unexpected
    model.tie_weights()
    return model.eval()


def configure(model_info: ModelInfo, **flags: object) -> EngineConfig:
    """A resolved configuration of small limits; `flags` by their Python names."""
    options: dict[str, object] = {"max_num_seqs": 8, "kv_cache_memory_bytes": 64 << 20}
    options |= {"max_model_len": min(1024, model_info.max_position), **flags}
    return resolve(from_kwargs(options, "offline", {}), MACHINE, model_info)


def open_runner(checkpoint: Checkpoint, **flags: object) -> Runner:
    model_info = checkpoint.model_info
    return Runner(configure(model_info, **flags), model_info, checkpoint, MACHINE.available_memory)
