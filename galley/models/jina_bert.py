"""Jina Embeddings 2: BERT with gated feed-forward blocks, whose scores fall with distance (ALiBi)
before a token and behind it."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.errors import ModelError
from galley.layers.alibi import alibi_slopes
from galley.layers.mlp import MLPSpec
from galley.layers.weight_specs import Part, fuse
from galley.models.bert import EPS, attention
from galley.models.config import model_fields
from galley.models.decoder import DecoderSpec, PostNormLayerSpec
from galley.models.gpt import read_sizes


def jina_bert(model_info: ModelInfo) -> DecoderSpec:
    """All tokens have token type 0."""
    config = model_fields(model_info).with_defaults(layer_norm_eps=EPS)
    config.require("position_embedding_type", "alibi", default="absolute")
    config.require("feed_forward_type", "geglu", default="original")
    if "qk-post-norm" in str(model_info.hf_config.get("auto_map", "")):
        raise ModelError(
            f"{config.where}: auto_map names jina-bert-v2-qk-post-norm, a model with norms of "
            "queries and keys, which is not supported"
        )
    sizes = read_sizes(config, eps_key="layer_norm_eps", activation="gelu", tied=True)
    hidden = sizes.hidden

    def layer(index: int) -> PostNormLayerSpec:
        prefix = f"encoder.layer.{index}"
        names = ("self.query", "self.key", "self.value", "output.dense")
        usual = attention(sizes, *(f"{prefix}.attention.{name}" for name in names))
        part = Part("", (sizes.intermediate, hidden))
        gate, up = fuse(f"{prefix}.mlp.gated_layers", (part, part))
        down = Part(f"{prefix}.mlp.wo", (hidden, sizes.intermediate))
        return PostNormLayerSpec(
            mixer=replace(usual, slopes=alibi_slopes(sizes.heads)),
            mlp=MLPSpec(gate, up, down, activation="gelu", down_bias=True),
            norm=sizes.norm(f"{prefix}.attention.output.LayerNorm"),
            mlp_norm=sizes.norm(f"{prefix}.mlp.layernorm"),
        )

    types = config.integer("type_vocab_size", 2, least=1)
    token_types = Part("embeddings.token_type_embeddings", (types, hidden))
    return DecoderSpec(
        embedding=Part("embeddings.word_embeddings", (sizes.vocab, hidden), plus=token_types),
        layers=[layer(i) for i in range(sizes.layers)],
        norm=None,
        head=None,
        ignored=("embeddings.position_ids",),
        embedding_norm=sizes.norm("embeddings.LayerNorm"),
    )
