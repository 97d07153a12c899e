"""Classifiers and cross-encoders over a socket and in Python."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from galley import LLM
from tests.models.checkpoints import Case, make
from tests.models.encoders import SIZES
from tests.server.test_embeddings import Embedder

WORDS = ["the", "a", "fox", "dog", "runs", "sleeps", "over", "under"]
WORDS += ["quick", "lazy", "what", "does", "do", "who", "is", "far"]
PAIRS = [("what does the fox do", "the quick fox runs"), ("who sleeps", "the lazy dog sleeps far")]


def write_cross_encoder(folder: Path, labels: int) -> transformers.PreTrainedModel:
    """A BERT that classifies pairs of texts."""
    config = {**SIZES, "num_labels": labels, "max_position_embeddings": 64}
    model = make(Case("Bert", config, "ForSequenceClassification"))
    with torch.no_grad():
        model.bert.embeddings.token_type_embeddings.weight.normal_()
        model.classifier.weight.normal_()
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return model


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of whole words, which tells the texts of a pair apart."""
    vocab = {w: i for i, w in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))


def logits(model: Any, folder: Path, first: str, second: str | None = None) -> torch.Tensor:
    encoding = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(first, second)
    with torch.inference_mode():
        ids, types = torch.tensor([encoding.ids]), torch.tensor([encoding.type_ids])
        return model(input_ids=ids, token_type_ids=types).logits[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cross-encoder")


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return write_cross_encoder(folder, 1)


@pytest.fixture(scope="module")
def server(folder: Path, model: Any) -> Iterator[Embedder]:
    server = Embedder(folder, "--dtype float32 --kv-cache-memory-bytes 16m")
    try:
        yield server
    finally:
        server.stop()


def test_scores_are_those_of_transformers(server: Embedder, model: Any, folder: Path) -> None:
    want = [float(logits(model, folder, *pair).sigmoid()) for pair in PAIRS]
    body = {"text_1": [a for a, _ in PAIRS], "text_2": [b for _, b in PAIRS]}
    reply = httpx.post(f"{server.url}/score", json=body, timeout=60).json()
    assert reply["object"] == "list"
    np.testing.assert_allclose([entry["score"] for entry in reply["data"]], want, atol=1e-5)
    documents = [document for _, document in PAIRS]
    want = [float(logits(model, folder, PAIRS[0][0], b).sigmoid()) for b in documents]
    body = {"query": PAIRS[0][0], "documents": documents, "return_documents": False}
    reply = httpx.post(f"{server.url}/v2/rerank", json=body, timeout=60).json()
    got = {entry["index"]: entry["relevance_score"] for entry in reply["results"]}
    np.testing.assert_allclose([got[0], got[1]], want, atol=1e-5)
    assert [e["relevance_score"] for e in reply["results"]] == sorted(got.values(), reverse=True)
    assert "document" not in reply["results"][0]


def test_pairs_are_cut(server: Embedder) -> None:
    def score(document: str, **body: Any) -> Any:
        body = {"text_1": "who is", "text_2": document, **body}
        return httpx.post(f"{server.url}/score", json=body, timeout=60).json()

    long = "the fox runs far over the lazy dog " * 20
    assert score(long)["error"]["param"] == "text_2"
    cut = score(long, truncate_prompt_tokens=9)
    assert cut["usage"]["prompt_tokens"] == 9
    assert cut["data"] == score("the fox runs far")["data"]
    assert score(long, max_tokens_per_doc=2)["data"] == score("the fox")["data"]
    assert score("fox", max_tokens_per_query=1)["usage"]["prompt_tokens"] == 5


def test_labels(tmp_path: Path) -> None:
    model = write_cross_encoder(tmp_path, 3)
    flags = {"kv_cache_memory_bytes": 16 << 20, "num_threads": 1, "dtype": "float32"}
    with LLM(str(tmp_path), **flags) as llm:
        texts = [text for pair in PAIRS for text in pair]
        for text, output in zip(texts, llm.classify(texts, use_tqdm=False), strict=True):
            want = logits(model, tmp_path, text).softmax(-1)
            np.testing.assert_allclose(output.outputs.probs, want, atol=1e-5)
            assert output.outputs.num_classes == 3


def test_labels_over_http(server: Embedder, model: Any, folder: Path) -> None:
    reply = httpx.post(f"{server.url}/classify", json={"input": PAIRS[0][1]}, timeout=60).json()
    (entry,) = reply["data"]
    want = logits(model, folder, PAIRS[0][1]).sigmoid().tolist()
    np.testing.assert_allclose(entry.pop("probs"), want, atol=1e-5)
    assert entry == {"index": 0, "label": "LABEL_0", "num_classes": 1}
    reply = httpx.post(f"{server.url}/v1/embeddings", json={"input": "a"}, timeout=60)
    assert reply.status_code == 400
    assert "classify" in reply.json()["error"]["message"]
