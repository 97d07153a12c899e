"""Checkpoints: find them, read their headers, map their tensors. Knows no model and no kernel."""

from galley.loader.checkpoint import open_checkpoint, read_model_info, tensor_bytes
from galley.loader.source import Source, resolve_source, resolve_tokenizer
from galley.loader.tensor import Checkpoint, RawTensor

__all__ = [
    "Checkpoint",
    "RawTensor",
    "Source",
    "open_checkpoint",
    "read_model_info",
    "resolve_source",
    "resolve_tokenizer",
    "tensor_bytes",
]
