"""Encoders from GGUF: vectors and token ids of the same checkpoint in safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from galley.errors import ModelError
from galley.request import PoolingParams
from galley.text import load_tokenizer
from tests.loader.gguf_files import finish, write_gguf
from tests.models.checkpoints import StateDict, make
from tests.models.encoders import ENCODERS
from tests.models.test_encoders import PROMPTS, TOLERANCE, open_client

Arch = gguf.MODEL_ARCH
WORDS = ["the", "fox", "##es", "jump", "##ed", "cafe", "##s", "!", ",", "é", "[unused0]", "中"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def write(path: Path, arch: gguf.MODEL_ARCH, model: torch.nn.Module, pooling: int) -> None:
    c: Any = model.config
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_layer_norm_eps(c.layer_norm_eps)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType(pooling))
    writer.add_token_type_count(c.type_vocab_size)
    if arch is Arch.NOMIC_BERT:
        writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    names = gguf.get_tensor_name_map(arch, c.num_hidden_layers)
    for name, values in StateDict(model).arrays.items():
        if not name.startswith("pooler."):
            stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
            assert stored is not None, name
            writer.add_tensor(stored, np.ascontiguousarray(values))
    finish(writer)


@pytest.mark.parametrize("name", ["bert", "nomic-bert"])
def test_vectors_from_a_file_equal_transformers(name: str, tmp_path: Path) -> None:
    model = make(ENCODERS[name])
    arch = Arch.BERT if name == "bert" else Arch.NOMIC_BERT
    write(tmp_path / "m.gguf", arch, model, pooling=1)
    client = open_client(tmp_path / "m.gguf")
    for prompt, output in zip(PROMPTS, client.pool(PROMPTS, PoolingParams()), strict=True):
        with torch.inference_mode():
            mean = model(torch.tensor([prompt])).last_hidden_state[0].mean(0)
        want = torch.nn.functional.normalize(mean, dim=0).numpy()
        assert np.abs(output.outputs.data - want).max() <= TOLERANCE * np.abs(want).max()


def test_a_pooling_that_is_not_supported(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", Arch.BERT, make(ENCODERS["bert"]), pooling=4)
    with pytest.raises(ModelError, match=r"bert\.pooling_type = 4 is not supported"):
        open_client(tmp_path / "m.gguf")


@pytest.mark.parametrize("cased", [False, True])
def test_ids_of_word_pieces(cased: bool, tmp_path: Path) -> None:
    tokens = [*SPECIAL, *WORDS, *(["The"] if cased else [])]
    ids = {token: i for i, token in enumerate(tokens)}
    theirs = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    theirs.normalizer = normalizers.BertNormalizer(lowercase=not cased)
    theirs.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    theirs.add_special_tokens(SPECIAL)
    theirs.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    words = [t[2:] if t.startswith("##") else f"▁{t}" for t in tokens[len(SPECIAL) :]]
    kinds = [3] * len(SPECIAL) + [1] * len(words)
    keys = {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": SPECIAL + words,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.seperator_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
    }
    ours = load_tokenizer(write_gguf(tmp_path / "m.gguf", keys=keys))
    for text in ("The foxes jumped!", "the  café, cafés", "é 中the [MASK] quick", ""):
        assert ours.encode(text) == theirs.encode(text).ids
        assert ours.encode(text, False) == theirs.encode(text, add_special_tokens=False).ids
