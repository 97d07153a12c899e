"""Reading an adapter in the format that its path has."""

from __future__ import annotations

from pathlib import Path

from galley.config import ModelInfo
from galley.errors import ModelError
from galley.lora.gguf import read_gguf
from galley.lora.peft import read_peft
from galley.lora.tensors import AdapterTensors


def read_adapter(path: Path, model_info: ModelInfo, most_bytes: int) -> dict[str, AdapterTensors]:
    """The adapter's modules by name of the base model's tensor.

    Args:
        path: a folder of PEFT, or a GGUF file.
        most_bytes: of an adapter of this model in float32.

    Raises:
        ModelError: a file is missing, damaged, too large or not supported.
    """
    if path.is_dir():
        return read_peft(path, model_info, most_bytes)
    if path.is_file():
        return read_gguf(path, model_info, most_bytes)
    raise ModelError(f"{path}: there is no such folder or file")
