"""The loader's interface: `read_model_info` reads headers, `open_checkpoint` gives the weights."""

from __future__ import annotations

import importlib
import math

import numpy as np

from galley.config import ModelInfo
from galley.config.registries import LOAD_FORMATS
from galley.loader.ggml_types import GGML_TYPES
from galley.loader.source import Source
from galley.loader.tensor import Checkpoint, TensorHeader

_BLOCK_TYPES = {kind.name: kind for kind in GGML_TYPES.values()}


def read_model_info(source: Source) -> ModelInfo:
    """Declarations of a checkpoint, from config.json or the GGUF header; opens no weight file.

    Raises ModelError naming the file and what is wrong.
    """
    if source.is_gguf:
        from galley.loader.gguf_checkpoint import open_parts, tensors_of
        from galley.loader.gguf_info import info_of_gguf

        parts = open_parts(source.path)
        return info_of_gguf(parts[0], tensors_of(parts), source.changes)
    from galley.loader.hf_info import info_of_directory

    return info_of_directory(source.path, source.changes)


def open_checkpoint(source: Source) -> Checkpoint:
    """The checkpoint, its tensors mapped or made as its format does.

    Raises ModelError naming the file and what is wrong.
    """
    module, name = LOAD_FORMATS[source.format]
    checkpoint: Checkpoint = getattr(importlib.import_module(module), name).open(source)
    return checkpoint


def tensor_bytes(header: TensorHeader) -> int:
    """Bytes that a tensor takes in its file."""
    count, kind = math.prod(header.shape), _BLOCK_TYPES.get(header.dtype)
    if kind is not None:
        return count // kind.block * kind.block_bytes
    if header.dtype == "float4_e2m1fn":  # two in a byte
        return count // 2
    return count * np.dtype(header.dtype).itemsize
