"""The readers of hostile files: the loader, the quantised formats, the models, the tokenizers.

Each target takes the folder of a seed. It returns what it could load, or raises; only galley's own
errors are right.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from galley.chat.templates import ChatRenderer
from galley.config import ModelConfig, ModelInfo
from galley.config.resolve import Machine, from_kwargs, resolve
from galley.config.speculative import SpeculativeSettings
from galley.kernels.backend import Backend, Model, open_backend
from galley.layers.shapes import ShapeSource
from galley.layers.sites import Sites
from galley.layers.weight_specs import Part
from galley.loader import Source, open_checkpoint, read_model_info
from galley.lora import pack_adapter, read_adapter
from galley.models.decoder import Stage
from galley.models.dummy import DummyCheckpoint
from galley.models.registry import build_model
from galley.quant import to_float32
from galley.quant.kv_cache import checkpoint_kv_format
from galley.quant.registry import FORMATS
from galley.runner.draft_heads import make as make_heads
from galley.runner.load import load_model
from galley.runner.packed_file import PackedFile
from galley.spec.proposer import Target
from galley.text import load_tokenizer
from tests.fuzz.readers.seeds import MTP_FAMILY, VOCAB, base_config

MACHINE = Machine(num_cores=1, available_memory=2**30)
TEXT = "Hello, hello wörld 12345 <s>\n\t日本 \U0001f680"
MESSAGES = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "axa"}]


@cache
def _backend() -> Backend:
    return open_backend("cpu", "bf16", threads=1)


def _model(source: Source) -> None:
    model_info = read_model_info(source)
    checkpoint = open_checkpoint(source)
    checkpoint_kv_format(model_info)
    config = resolve(from_kwargs({"skip_tokenizer_init": True}, "server", {}), MACHINE, model_info)
    longest = config.model.max_model_len
    assert longest is not None
    load_model(model_info, checkpoint, _backend(), Stage(longest))
    # The formats that the model did not ask for.
    for name in checkpoint.names():
        raw = checkpoint.tensor(name)
        if raw.dtype in FORMATS:
            to_float32(raw)


def gguf(folder: Path) -> None:
    _model(Source(folder / "m.gguf", "gguf", "m"))


def directory(folder: Path) -> None:
    form = "safetensors"
    for name, other in (("params.json", "mistral"), ("pytorch_model.bin", "pt")):
        form = other if (folder / name).exists() else form
    _model(Source(folder, form, "m"))


def _info(family: str) -> ModelInfo:
    """A model of one layer."""
    return ModelInfo(family, base_config(family), VOCAB, 64, "bfloat16")


@cache
def _base() -> tuple[ModelInfo, Sites]:
    """The model that adapters are of."""
    info = _info("LlamaForCausalLM")
    shapes = ShapeSource()
    build_model(info, shapes, Stage(64))
    return info, shapes.sites


class Zeros:
    """`BaseWeights` of zeros."""

    def rows(self, part: Part) -> NDArray[np.float32]:
        return np.zeros((part.num_rows, part.num_inputs), np.float32)


def adapter(folder: Path) -> None:
    own = folder / "a.gguf"
    info, sites = _base()
    modules = read_adapter(own if own.exists() else folder, info, sites.shape.num_bytes(8, 4))
    pack_adapter("a", modules, sites, 8, True, Zeros())


@cache
def _drafted(family: str) -> tuple[Target, Model]:
    """The model that draft heads are of, random."""
    info = _info(family)
    config = resolve(from_kwargs({"skip_tokenizer_init": True}, "server", {}), MACHINE, info)
    model = load_model(info, DummyCheckpoint(info), _backend(), Stage(64)).model
    return Target(config, info, 1, 2**30), model


def heads(folder: Path) -> None:
    method = (folder / "method").read_text()
    target, model = _drafted(MTP_FAMILY if method == "mtp" else "LlamaForCausalLM")
    settings = SpeculativeSettings(method, str(folder))
    proposer = make_heads(settings, target)
    proposer.caches(model.kv_layers)
    proposer.load(_backend(), model, 64)


def tokenizer(folder: Path) -> None:
    gguf_file = folder / "t.gguf"
    loaded = load_tokenizer(gguf_file if gguf_file.exists() else folder)
    ids = loaded.encode(TEXT)
    loaded.decode(ids)
    loaded.decode([0, 1, 2, 3, 2**31 - 1], skip_special_tokens=False)
    _ = loaded.fim, loaded.bos_token_id, loaded.eos_token_id
    if loaded.vocab_size:
        loaded.token_bytes(loaded.vocab_size - 1)
    renderer = ChatRenderer.of(loaded)
    if renderer is not None:
        renderer.start_trial()()
        renderer.render(MESSAGES)


_RENDERER = ChatRenderer({"default": "x"}, {"bos_token": "<s>"})


def template(folder: Path) -> None:
    """As a request's and, once it has been tried, as a checkpoint's."""
    source = (folder / "t.jinja").read_bytes().decode(errors="replace")
    _RENDERER.render(MESSAGES, chat_template=source)
    own = ChatRenderer({"default": source}, {"bos_token": "<s>"})
    own.start_trial()()
    own.render(MESSAGES)


def packed(folder: Path) -> None:
    opened = PackedFile.open(folder / "w")
    if opened is None:
        raise Refused
    for matrix in opened.matrices.values():
        for weight in matrix.weights:
            weight.unpack()


class Refused(Exception):
    """The reader said no in its own way."""


TARGETS: dict[str, Callable[[Path], None]] = {
    "gguf": gguf,
    "directory": directory,
    "adapter": adapter,
    "heads": heads,
    "tokenizer": tokenizer,
    "template": template,
    "packed": packed,
}

__all__ = ["MESSAGES", "TARGETS", "ModelConfig", "Refused"]
