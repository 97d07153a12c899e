"""The built-in model cut to its first layers: same tokenizer and formats, a fifth of the cost."""

from __future__ import annotations

import functools
import struct
import tempfile
from pathlib import Path

from galley.loader.ggml_types import GGML_TYPES
from galley.loader.gguf import GGUFFile
from galley.loader.source import default_model

LAYERS = 2
_NUMBERS = {kind: number for number, kind in GGML_TYPES.items()}


@functools.cache
def small_model() -> Path:
    """A GGUF file, written once a run, of two layers and the whole vocabulary."""
    path = Path(_folder().name) / "small.gguf"
    path.write_bytes(_cut(default_model()))
    return path


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Removed when this process ends."""
    return tempfile.TemporaryDirectory(prefix="small-model-")


def _cut(source: Path) -> bytes:
    raw, file = source.read_bytes(), GGUFFile(source)
    kept = [
        t
        for t in file.tensors.values()
        if not t.name.startswith("blk.") or int(t.name.split(".")[1]) < LAYERS
    ]
    first = next(iter(file.tensors)).encode()
    table = raw.index(struct.pack("<Q", len(first)) + first)
    head = bytearray(raw[:table])
    struct.pack_into("<Q", head, 8, len(kept))
    key = b"llama.block_count"
    struct.pack_into("<I", head, head.index(key) + len(key) + 4, LAYERS)
    infos, data = b"", b""
    for tensor in kept:
        data += b"\0" * (-len(data) % file.alignment)
        name, dims = tensor.name.encode(), tensor.shape[::-1]
        entry = (len(dims), *dims, _NUMBERS[tensor.type], len(data))
        infos += struct.pack("<Q", len(name)) + name
        infos += struct.pack(f"<I{len(dims)}QIQ", *entry)
        data += raw[tensor.start : tensor.start + tensor.num_bytes]
    head += infos
    head += b"\0" * (-len(head) % file.alignment)
    return bytes(head) + data
