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
TOKEN_TYPES = "tokenizer.ggml.token_type_count"
_BERT_TOP = {
    "token_embd": "embeddings.word_embeddings",
    "token_embd_norm": "embeddings.LayerNorm",
    "token_types": "embeddings.token_type_embeddings",
    "position_embd": "embeddings.position_embeddings",
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
    """The pooling that a file declares; None = none. Vectors have length 1.

    Raises ModelError for one that is not supported (RANK: a classifier).
    """
    key = f"{arch}.pooling_type"
    kind = meta.integer(key, 0)
    if kind == 0:
        return None
    if kind not in _POOLINGS:
        known = ", ".join(f"{value} {name}" for value, name in _POOLINGS.items())
        raise ModelError(f"{meta.where}: {key} = {kind} is not supported; known: {known}")
    return PoolingSettings(_POOLINGS[kind], activate=True)


def bert(meta: Fields, arch: str, names: set[str]) -> dict[str, Any]:
    """BERT, and RoBERTa whose table of positions begins at the first one."""
    return {**_encoder(meta, arch, names), "hidden_act": "gelu"}


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
    "nomic-bert": Architecture(
        "NomicBertModel",
        "nomic_bert",
        top=_NOMIC_TOP,
        in_layer=_NOMIC_NAMES,
        layers="encoder.layers",
        config=_encoder,
    ),
}
