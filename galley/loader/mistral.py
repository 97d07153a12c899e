"""Mistral's own form of a checkpoint: params.json and consolidated*.safetensors.

Tensors get the names that Hugging Face gives them. Rows of wq and wk lie as the original rotary
embedding pairs them, adjacent in a head, and are put in order (`RawTensor.row_order`). A
config.json beside params.json is used instead of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from galley.errors import ModelError
from galley.loader.config_changes import ConfigChanges
from galley.loader.fields import MAX_HEAD_DIM, MAX_HEADS, Fields
from galley.loader.gguf_names import deinterleaved_rows
from galley.loader.safetensors import SafetensorsCheckpoint, SafetensorsFile, TensorFile, open_all
from galley.loader.source import Source
from galley.loader.tensor import RawTensor

WEIGHTS = "consolidated*.safetensors"
INDEX = "consolidated.safetensors.index.json"

#: Stored name → Hugging Face's.
_NAMES = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"tok_embeddings\.weight", "model.embed_tokens.weight"),
        (r"norm\.weight", "model.norm.weight"),
        (r"output\.weight", "lm_head.weight"),
        (
            r"layers\.(\d+)\.attention\.w([qkvo])\.weight",
            r"model.layers.\1.self_attn.\2_proj.weight",
        ),
        (r"layers\.(\d+)\.attention_norm\.weight", r"model.layers.\1.input_layernorm.weight"),
        (r"layers\.(\d+)\.ffn_norm\.weight", r"model.layers.\1.post_attention_layernorm.weight"),
        (r"layers\.(\d+)\.feed_forward\.w1\.weight", r"model.layers.\1.mlp.gate_proj.weight"),
        (r"layers\.(\d+)\.feed_forward\.w2\.weight", r"model.layers.\1.mlp.down_proj.weight"),
        (r"layers\.(\d+)\.feed_forward\.w3\.weight", r"model.layers.\1.mlp.up_proj.weight"),
        (
            r"layers\.(\d+)\.(?:feed_forward|block_sparse_moe)\.(gate|experts\.\d+\.w[123])\.weight",
            r"model.layers.\1.block_sparse_moe.\2.weight",
        ),
    )
)


def hf_name(stored: str) -> str | None:
    """Hugging Face's name of a tensor; None if this form has none of that name."""
    for pattern, name in _NAMES:
        match = pattern.fullmatch(stored)
        if match is not None:
            return match.expand(name)
    return None


class MistralCheckpoint(SafetensorsCheckpoint):
    """The consolidated files of a directory."""

    def __init__(self, directory: Path, changes: ConfigChanges | None = None) -> None:
        """Raises ModelError for missing, damaged or unsupported files."""
        super().__init__(directory, changes)
        places: dict[str, tuple[TensorFile, str]] = {}
        for file, stored in self._places.values():
            name = hf_name(stored)
            if name is None or name in places:
                raise ModelError(
                    f"{file.path}: tensor {stored} is not one of a Mistral or Mixtral model "
                    "without quantization"
                )
            places[name] = file, stored
        self._places = places

    @staticmethod
    def open(source: Source) -> MistralCheckpoint:
        """For the load format "mistral"."""
        return MistralCheckpoint(source.path, source.changes)

    def tensor(self, name: str) -> RawTensor:
        raw = super().tensor(name)
        for kind, heads in (("q", "num_attention_heads"), ("k", "num_key_value_heads")):
            if name.endswith(f".{kind}_proj.weight"):
                return replace(raw, row_order=self._row_order(name, raw, heads))
        return raw

    def _row_order(self, name: str, raw: RawTensor, key: str) -> Any:
        config = Fields(self.model_info.hf_config, str(self.directory))
        all_heads = config.integer("num_attention_heads", least=1, most=MAX_HEADS)
        heads = config.integer(key, all_heads, least=1, most=MAX_HEADS)
        size = config.integer(
            "head_dim", config.integer("hidden_size") // all_heads, least=1, most=MAX_HEAD_DIM
        )
        if raw.shape[:1] != (heads * size,) or size % 2:
            raise ModelError(
                f"{self.directory}: tensor {name} of shape {list(raw.shape)} should have {heads} "
                f"heads of {size} rows"
            )
        return deinterleaved_rows(heads, size)

    def _open_files(self, directory: Path) -> Mapping[str, TensorFile]:
        return open_all(directory, INDEX, consolidated_files, SafetensorsFile)


def consolidated_files(directory: Path) -> list[Path]:
    """Raises ModelError if the directory has none."""
    files = sorted(directory.glob(WEIGHTS))
    if not files:
        raise ModelError(f"{directory}: holds no {WEIGHTS}", field="load_format")
    return files
