"""MiniCPM: Llama with factors of the embedding, of each block's output and of the logits."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.models.config import model_fields
from galley.models.decoder import DecoderSpec
from galley.models.deepseek import latent_attention, latent_sizes
from galley.models.llama import decoder, layer, read_sizes


def minicpm(model_info: ModelInfo) -> DecoderSpec:
    """MiniCPM 1B and 2B, and MiniCPM 4 without sparse attention."""
    config = model_fields(model_info)
    config.require("sparse_config", None)
    config = config.with_defaults(tie_word_embeddings=True)
    sizes = read_sizes(config)
    residual = config.number("scale_depth", 1.0) / sizes.layers**0.5
    bias = config.flag("attention_bias", False)
    layers = [
        replace(layer(sizes, i, qkv_bias=bias, out_bias=bias), residual=residual)
        for i in range(sizes.layers)
    ]
    return replace(
        decoder(sizes, layers),
        embedding_scale=config.number("scale_emb", 1.0),
        logits_scale=config.number("dim_model_base", sizes.hidden) / sizes.hidden,
    )


def minicpm3(model_info: ModelInfo) -> DecoderSpec:
    """MiniCPM 3: the same factors, and latent attention."""
    config = model_fields(model_info)
    sizes = latent_sizes(config)
    depth = config.number("scale_depth", sizes.layers**0.5)
    layers = [
        replace(
            layer(sizes, i),
            mixer=latent_attention(config, sizes, f"model.layers.{i}.self_attn", False),
            residual=depth / sizes.layers**0.5,
        )
        for i in range(sizes.layers)
    ]
    return replace(
        decoder(sizes, layers),
        embedding_scale=config.number("scale_emb", 1.0),
        logits_scale=config.number("dim_model_base", sizes.hidden) / sizes.hidden,
    )
