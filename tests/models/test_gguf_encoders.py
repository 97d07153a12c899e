"""Encoders from GGUF: vectors and token ids of the same checkpoint in safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import sentencepiece
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from galley.errors import ModelError
from galley.request import PoolingParams
from galley.text import load_tokenizer
from galley.text.sentencepiece import read_model_file
from tests.loader.gguf_files import finish, write_gguf
from tests.models.checkpoints import Case, StateDict, make
from tests.models.encoders import ENCODERS, SIZES
from tests.models.test_encoders import PROMPTS, TOLERANCE, open_client
from tests.text.vocabularies import sentencepiece_keys, trained_sentencepiece

Arch = gguf.MODEL_ARCH
WORDS = ["the", "fox", "##es", "jump", "##ed", "cafe", "##s", "!", ",", "é", "[unused0]", "中"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def write(
    path: Path,
    arch: gguf.MODEL_ARCH,
    model: torch.nn.Module,
    pooling: int,
    gate_by_itself: bool = False,
    pooler: bool = False,
) -> None:
    c: Any = model.config if hasattr(model.config, "hidden_size") else model.inner.config
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
        name = name.removeprefix("bert.")
        if name.startswith("pooler."):
            if pooler:
                writer.add_tensor(name.replace("pooler.dense", "cls"), values)
            continue
        if name.startswith("classifier."):
            writer.add_tensor(name.replace("classifier", "cls.output"), values)
            continue
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored is not None, name
        if "gated_layers" in name and gate_by_itself:
            gate, values = np.split(values, 2)
            writer.add_tensor(stored.replace("ffn_up", "ffn_gate"), np.ascontiguousarray(gate))
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


@pytest.mark.parametrize("gate_by_itself", [True, False])
def test_jina_bert(gate_by_itself: bool, tmp_path: Path) -> None:
    """As converters write it: gate and up projection by themselves, or in one tensor."""
    model = make(ENCODERS["jina-bert"])
    write(tmp_path / "m.gguf", Arch.JINA_BERT_V2, model, 1, gate_by_itself)
    client = open_client(tmp_path / "m.gguf")
    for prompt, output in zip(PROMPTS, client.pool(PROMPTS, PoolingParams()), strict=True):
        with torch.inference_mode():
            mean = model(torch.tensor([prompt])).last_hidden_state[0].mean(0)
        want = torch.nn.functional.normalize(mean, dim=0).numpy()
        assert np.abs(output.outputs.data - want).max() <= TOLERANCE * np.abs(want).max()


@pytest.mark.parametrize("pooler", [True, False])
def test_rerankers(pooler: bool, tmp_path: Path) -> None:
    """With the layer before the classifier, as XLM-RoBERTa's have it, and without."""
    model = make(Case("Bert", {**SIZES, "num_labels": 1}, "ForSequenceClassification"))
    write(tmp_path / "m.gguf", Arch.BERT, model, pooling=4, pooler=pooler)
    client = open_client(tmp_path / "m.gguf")
    for prompt, output in zip(PROMPTS, client.pool(PROMPTS, PoolingParams()), strict=True):
        with torch.inference_mode():
            first = model.bert(torch.tensor([prompt])).last_hidden_state[:, :1]
            hidden = model.bert.pooler(first) if pooler else first[:, 0]
            want = model.classifier(hidden)[0].sigmoid().numpy()
        np.testing.assert_allclose(output.outputs.data, want, atol=1e-4)


def test_poolings_that_are_not_supported(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", Arch.BERT, make(ENCODERS["bert"]), pooling=4)
    with pytest.raises(ModelError, match=r"RANK without the tensor cls\.output\.weight"):
        open_client(tmp_path / "m.gguf")
    keys = {"llama.pooling_type": 4}
    with pytest.raises(ModelError, match=r"llama\.pooling_type = 4 is not supported"):
        open_client(write_gguf(tmp_path / "n.gguf", keys=keys))
    keys = {"llama.pooling_type": 7}
    with pytest.raises(ModelError, match=r"llama\.pooling_type = 7 is not supported"):
        open_client(write_gguf(tmp_path / "o.gguf", keys=keys))


def test_ids_of_unigram_pieces(tmp_path: Path) -> None:
    """With Unicode normalisation, as XLM-RoBERTa's files have it, alone and as pairs."""
    proto = trained_sentencepiece(
        "unigram",
        normalization_rule_name="nmt_nfkc",
        remove_extra_whitespaces=True,
        byte_fallback=False,
    )
    (tmp_path / "tokenizer.model").write_bytes(proto)
    charsmap = read_model_file(tmp_path / "tokenizer.model").charsmap
    assert charsmap
    keys = sentencepiece_keys(
        proto,
        **{
            "tokenizer.ggml.model": "t5",
            "tokenizer.ggml.precompiled_charsmap": charsmap,
            "tokenizer.ggml.remove_extra_whitespaces": True,
            "tokenizer.ggml.add_bos_token": True,
            "tokenizer.ggml.add_eos_token": True,
        },
    )
    ours = load_tokenizer(write_gguf(tmp_path / "m.gguf", keys=keys))
    theirs = sentencepiece.SentencePieceProcessor(model_proto=proto)
    texts = ("The whale, and  the sea!", " ﬁne Ⅳ \t\n ｗｉｄｅ café", "🐳 Ishmael 中", "")
    for text in texts:
        assert ours.encode(text, False) == theirs.encode(text)
        assert ours.encode(text) == [1, *theirs.encode(text), 2]
    first, second = map(theirs.encode, texts[:2])
    assert ours.encode_pair(*texts[:2])[0] == [1, *first, 2, 2, *second, 2]


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
