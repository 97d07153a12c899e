"""Adapters (LoRA): checkpoints of PEFT, and the files in which workers find them packed."""

from __future__ import annotations

from galley.lora.peft import MAX_RANKS, read_peft
from galley.lora.store import AdapterFolder, load_number
from galley.lora.tensors import AdapterTensors, pack_adapter

__all__ = [
    "MAX_RANKS",
    "AdapterFolder",
    "AdapterTensors",
    "load_number",
    "pack_adapter",
    "read_peft",
]
