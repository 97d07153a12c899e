"""Adapters (LoRA): checkpoints of PEFT and llama.cpp, and the files where workers find them."""

from __future__ import annotations

from galley.lora.base import CheckpointBase
from galley.lora.peft import MAX_RANKS
from galley.lora.read import read_adapter
from galley.lora.store import AdapterFolder, load_number
from galley.lora.tensors import AdapterTensors, pack_adapter

__all__ = [
    "MAX_RANKS",
    "AdapterFolder",
    "AdapterTensors",
    "CheckpointBase",
    "load_number",
    "pack_adapter",
    "read_adapter",
]
