"""Nomic Embed: BERT with rotary positions, gated feed-forward blocks and no biases."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.layers.attention import AttentionSpec
from galley.layers.layer_norm import LayerNormSpec
from galley.layers.mlp import MLPSpec
from galley.layers.weight_specs import Part, fuse
from galley.loader.fields import MAX_LAYERS
from galley.models.config import model_fields, read_rotary
from galley.models.decoder import DecoderSpec, PostNormLayerSpec
from galley.models.heads import plain_attention, read_heads

#: Keys of the published configs whose other values are other models.
_FIXED = {
    "activation_function": "swiglu",
    "hidden_act": "silu",
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "moe_every_n_layers": 0,
    "prenorm": False,
    "qkv_proj_bias": False,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "use_rms_norm": False,
}


def nomic_bert(model_info: ModelInfo) -> DecoderSpec:
    """Without the experts of version 2. All tokens have token type 0."""
    config = model_fields(model_info)
    for key, value in _FIXED.items():
        config.require(key, value, default=value)
    heads = read_heads(config, grouped=False)
    hidden, intermediate = heads.hidden, config.integer("intermediate_size", least=1)
    eps = config.number("layer_norm_eps", config.number("layer_norm_epsilon", 1e-12))
    rotary = read_rotary(config, heads.head_dim, config.number("rotary_emb_base", 1000.0))

    def attention(prefix: str) -> AttentionSpec:
        spec = plain_attention(heads, prefix, rotary, out="out_proj")
        q, k, v = fuse(f"{prefix}.Wqkv", (spec.q, spec.k, spec.v))
        return replace(spec, q=q, k=k, v=v, causal=False)

    def layer(index: int) -> PostNormLayerSpec:
        prefix = f"encoder.layers.{index}"
        return PostNormLayerSpec(
            mixer=attention(f"{prefix}.attn"),
            mlp=MLPSpec(
                gate=Part(f"{prefix}.mlp.fc12", (intermediate, hidden)),
                up=Part(f"{prefix}.mlp.fc11", (intermediate, hidden)),
                down=Part(f"{prefix}.mlp.fc2", (hidden, intermediate)),
            ),
            norm=LayerNormSpec(f"{prefix}.norm1", hidden, eps),
            mlp_norm=LayerNormSpec(f"{prefix}.norm2", hidden, eps),
        )

    types = config.integer("type_vocab_size", 2, least=1)
    token_types = Part("embeddings.token_type_embeddings", (types, hidden))
    vocab = config.integer("vocab_size", least=1)
    return DecoderSpec(
        embedding=Part("embeddings.word_embeddings", (vocab, hidden), plus=token_types),
        layers=[layer(i) for i in range(config.integer("num_hidden_layers", most=MAX_LAYERS))],
        norm=None,
        head=None,
        embedding_norm=LayerNormSpec("emb_ln", hidden, eps),
    )
