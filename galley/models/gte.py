"""GTE: BERT with rotary positions and gated feed-forward blocks, as Alibaba's NewModel has it."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.layers.layer_norm import LayerNormSpec
from galley.layers.mlp import MLPSpec
from galley.layers.weight_specs import Part, fuse
from galley.loader.fields import MAX_LAYERS
from galley.models.config import model_fields, read_rotary
from galley.models.decoder import DecoderSpec, PostNormLayerSpec
from galley.models.heads import plain_attention, read_heads

#: Keys of the published configs whose other values are other models.
_FIXED = {
    "hidden_act": "gelu",
    "layer_norm_type": "layer_norm",
    "logn_attention_scale": False,
    "pack_qkv": True,
    "position_embedding_type": "rope",
}


def gte(model_info: ModelInfo) -> DecoderSpec:
    """All tokens have token type 0, where there are types."""
    config = model_fields(model_info)
    for key, value in _FIXED.items():
        config.require(key, value, default=value)
    heads = read_heads(config, grouped=False)
    hidden, intermediate = heads.hidden, config.integer("intermediate_size", least=1)
    rotary = read_rotary(config, heads.head_dim, 160000.0)
    eps = config.number("layer_norm_eps", 1e-12)

    def layer(index: int) -> PostNormLayerSpec:
        prefix = f"encoder.layer.{index}"
        usual = plain_attention(heads, f"{prefix}.attention", rotary)
        q, k, v = fuse(f"{prefix}.attention.qkv_proj", (usual.q, usual.k, usual.v))
        part = Part("", (intermediate, hidden))
        up, gate = fuse(f"{prefix}.mlp.up_gate_proj", (part, part))
        down = Part(f"{prefix}.mlp.down_proj", (hidden, intermediate))
        return PostNormLayerSpec(
            mixer=replace(usual, q=q, k=k, v=v, causal=False, qkv_bias=True, out_bias=True),
            mlp=MLPSpec(gate, up, down, activation="gelu", down_bias=True),
            norm=LayerNormSpec(f"{prefix}.attn_ln", hidden, eps),
            mlp_norm=LayerNormSpec(f"{prefix}.mlp_ln", hidden, eps),
        )

    types = config.integer("type_vocab_size", 1, least=0)
    token_types = Part("embeddings.token_type_embeddings", (types, hidden)) if types else None
    vocab = config.integer("vocab_size", least=1)
    return DecoderSpec(
        embedding=Part("embeddings.word_embeddings", (vocab, hidden), plus=token_types),
        layers=[layer(i) for i in range(config.integer("num_hidden_layers", most=MAX_LAYERS))],
        norm=None,
        head=None,
        ignored=("lm_head.", "pooler."),
        embedding_norm=LayerNormSpec("embeddings.LayerNorm", hidden, eps),
    )
