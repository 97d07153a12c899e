"""ModernBERT: rotary positions of two bases, and layers that see tokens around each one."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.layers.attention import AttentionSpec
from galley.layers.layer_norm import LayerNormSpec
from galley.layers.mlp import MLPSpec
from galley.layers.weight_specs import Part, fuse
from galley.loader.fields import MAX_LAYERS
from galley.models.config import (
    LayerKind,
    attention_kinds,
    model_fields,
    read_rotary,
    rope_of_kind,
)
from galley.models.decoder import DecoderSpec, LayerSpec
from galley.models.heads import plain_attention, read_heads


def modernbert(model_info: ModelInfo) -> DecoderSpec:
    """The embedding stands in for a head."""
    config = model_fields(model_info)
    config.require("hidden_activation", "gelu", default="gelu")
    heads = read_heads(config, grouped=False)
    hidden, intermediate = heads.hidden, config.integer("intermediate_size", least=1)
    num_layers = config.integer("num_hidden_layers", least=1, most=MAX_LAYERS)
    every = config.integer("global_attn_every_n_layers", 3, least=1)
    kinds = attention_kinds(
        config, num_layers, lambda i: "sliding_attention" if i % every else "full_attention"
    )
    bias, mlp_bias = config.flag("attention_bias", False), config.flag("mlp_bias", False)
    # Half of the tokens on each side, and the token itself.
    window = config.integer("local_attention", 128, least=0) // 2 + 1
    thetas = {
        "full_attention": config.number("global_rope_theta", 160000.0),
        "sliding_attention": config.number("local_rope_theta", 10000.0),
    }
    rotaries = {
        kind: read_rotary(rope_of_kind(config, kind), heads.head_dim, theta)
        for kind, theta in thetas.items()
    }

    def norm(name: str) -> LayerNormSpec:
        eps, has_bias = config.number("norm_eps", 1e-5), config.flag("norm_bias", False)
        return LayerNormSpec(name, hidden, eps, bias=has_bias)

    def attention(prefix: str, kind: LayerKind) -> AttentionSpec:
        spec = plain_attention(heads, prefix, rotaries[kind], out="Wo")
        q, k, v = fuse(f"{prefix}.Wqkv", (spec.q, spec.k, spec.v))
        return replace(
            spec,
            q=q,
            k=k,
            v=v,
            qkv_bias=bias,
            out_bias=bias,
            causal=False,
            window=window if kind == "sliding_attention" else 0,
        )

    def mlp(prefix: str) -> MLPSpec:
        part = Part("", (intermediate, hidden))
        gate, up = fuse(f"{prefix}.Wi", (part, part))
        down = Part(f"{prefix}.Wo", (hidden, intermediate))
        return MLPSpec(gate, up, down, mlp_bias, "gelu")

    def layer(index: int) -> LayerSpec:
        prefix = f"layers.{index}"
        return LayerSpec(
            mixer=attention(f"{prefix}.attn", kinds[index]),
            mlp=mlp(f"{prefix}.mlp"),
            # The input of the first layer is normalised already.
            mixer_norm=norm(f"{prefix}.attn_norm") if index else None,
            mlp_norm=norm(f"{prefix}.mlp_norm"),
        )

    return DecoderSpec(
        embedding=Part("embeddings.tok_embeddings", (config.integer("vocab_size"), hidden)),
        layers=[layer(i) for i in range(num_layers)],
        norm=norm("final_norm"),
        head=None,
        embedding_norm=norm("embeddings.norm"),
    )
