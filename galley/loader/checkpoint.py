"""The loader's interface: `read_model_info` reads headers, `open_checkpoint` gives the weights."""

from __future__ import annotations

import importlib

from galley.config import ModelInfo
from galley.config.registries import LOAD_FORMATS
from galley.loader.source import Source
from galley.loader.tensor import Checkpoint


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
