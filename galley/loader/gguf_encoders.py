"""GGUF architectures of encoders, and the pooling that files of any architecture declare."""

from __future__ import annotations

from typing import Any

from galley.config.pooling import PoolingSettings
from galley.errors import ModelError
from galley.loader.fields import Fields
from galley.loader.gguf_architecture import Architecture
from galley.loader.gguf_dense import equal_layers
from galley.request import Pooling

#: Value of `pooling_type` → pooling; 0 declares none.
_POOLINGS: dict[int, Pooling] = {1: "MEAN", 2: "CLS", 3: "LAST"}
#: Value of `pooling_type` of rerankers: a classifier makes the result.
_RANK = 4
_RANKING = ("bert", "jina-bert-v2", "qwen3")
#: The steepest slope that llama.cpp's ALiBi is made for.
_ALIBI = 8.0
TOKEN_TYPES = "tokenizer.ggml.token_type_count"
_BERT_TOP = {
    "token_embd": "embeddings.word_embeddings",
    "token_embd_norm": "embeddings.LayerNorm",
    "token_types": "embeddings.token_type_embeddings",
    "position_embd": "embeddings.position_embeddings",
    # Of rerankers.
    "cls": "pooler.dense",
    "cls.output": "classifier",
}
_BERT_NAMES = {
    "attn_q": "attention.self.query",
    "attn_k": "attention.self.key",
    "attn_v": "attention.self.value",
    "attn_output": "attention.output.dense",
    "attn_output_norm": "attention.output.LayerNorm",
    "ffn_up": "intermediate.dense",
    "ffn_down": "output.dense",
    "layer_output_norm": "output.LayerNorm",
}
_JINA_NAMES = {
    **_BERT_NAMES,
    # Gate and up projection in one tensor, or by themselves.
    "ffn_up": "mlp.gated_layers",
    "ffn_down": "mlp.wo",
    "layer_output_norm": "mlp.layernorm",
}
_NOMIC_TOP = {
    "token_embd": "embeddings.word_embeddings",
    "token_embd_norm": "emb_ln",
    "token_types": "embeddings.token_type_embeddings",
}
_NOMIC_NAMES = {
    "attn_qkv": "attn.Wqkv",
    "attn_output": "attn.out_proj",
    "attn_output_norm": "norm1",
    "ffn_up": "mlp.fc11",
    "ffn_gate": "mlp.fc12",
    "ffn_down": "mlp.fc2",
    "layer_output_norm": "norm2",
}


def pooling_of(meta: Fields, arch: str) -> PoolingSettings | None:
    """The pooling that a file declares; None = none, or that of a classifier. Vectors have length
    1. Raises ModelError for one that is not supported."""
    key = f"{arch}.pooling_type"
    kind = meta.integer(key, 0)
    if kind == 0 or ranks(meta, arch):
        return None
    if kind not in _POOLINGS:
        known = ", ".join(f"{value} {name}" for value, name in _POOLINGS.items())
        raise ModelError(f"{meta.where}: {key} = {kind} is not supported; known: {known}")
    return PoolingSettings(_POOLINGS[kind], activate=True)


def ranks(meta: Fields, arch: str) -> bool:
    """Whether the file is a reranker: it has a classifier of texts."""
    return arch in _RANKING and meta.integer(f"{arch}.pooling_type", 0) == _RANK


def bert(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    """BERT, and RoBERTa whose table of positions begins at the first one."""
    return {**_encoder(meta, arch, names), "hidden_act": "gelu"}


def _jina_bert(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    key = f"{arch}.attention.max_alibi_bias"
    if meta.number(key, _ALIBI) != _ALIBI:
        raise ModelError(f"{meta.where}: {key} other than {_ALIBI} is not supported")
    alibi = {"position_embedding_type": "alibi", "feed_forward_type": "geglu"}
    return {**bert(meta, arch, names), **alibi}


def classifier(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    """A reranker's labels, and whether a layer comes before its classifier. Raises ModelError if
    there is none.

    Of two labels of a decoder the first one's probability is the score: that is the sigmoid of its
    number less the other's.
    """
    if "cls.output.weight" not in names:
        raise ModelError(f"{meta.where}: pooling_type RANK without the tensor cls.output.weight")
    labels = meta.values.get(f"{arch}.classifier.output_labels")
    named = [str(label) for label in labels] if isinstance(labels, list) else ["LABEL_0"]
    rows = None
    if arch == "qwen3" and len(named) == 2:
        named, rows = named[:1], [1, 0]
    return {
        "classifier_rows": rows,
        "id2label": {str(i): label for i, label in enumerate(named)},
        "classifier_pooler": "cls.weight" in names,
    }


def _encoder(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    if meta.flag(f"{arch}.attention.causal", False):
        raise ModelError(f"{meta.where}: {arch}.attention.causal is not supported")
    types = meta.integer(TOKEN_TYPES, 2, least=1)
    return {**equal_layers(meta, arch, names), "type_vocab_size": types}


ARCHITECTURES: dict[str, Architecture] = {
    "bert": Architecture(
        "BertModel",
        "bert",
        top=_BERT_TOP,
        in_layer=_BERT_NAMES,
        layers="encoder.layer",
        config=bert,
    ),
    "jina-bert-v2": Architecture(
        "JinaBertModel",
        "jina_bert",
        top=_BERT_TOP,
        in_layer=_JINA_NAMES,
        layers="encoder.layer",
        fused={"mlp.gated_layers": ("ffn_gate", "ffn_up")},
        config=_jina_bert,
    ),
    "nomic-bert": Architecture(
        "NomicBertModel",
        "nomic_bert",
        top=_NOMIC_TOP,
        in_layer=_NOMIC_NAMES,
        layers="encoder.layers",
        config=_encoder,
    ),
}
