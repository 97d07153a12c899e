"""BLOOM: ALiBi in place of positions, a norm of the embedding, q, k and v in one tensor by head."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.layers.alibi import alibi_slopes
from galley.layers.weight_specs import fuse_runs
from galley.models.config import model_fields
from galley.models.decoder import DecoderSpec, LayerSpec
from galley.models.gpt import attention, decoder, mlp, read_sizes


def bloom(model_info: ModelInfo) -> DecoderSpec:
    config = model_fields(model_info)
    config.require("apply_residual_connection_post_layernorm", False, default=False)
    sizes = read_sizes(
        config, eps_key="layer_norm_epsilon", activation="gelu_pytorch_tanh", tied=True
    )
    sizes = replace(sizes, intermediate=4 * sizes.hidden)
    slopes = alibi_slopes(sizes.heads)

    def layer(index: int) -> LayerSpec:
        prefix = f"transformer.h.{index}"
        name = f"{prefix}.self_attention"
        apart = attention(sizes, name, out="dense", slopes=slopes)
        q, k, v = fuse_runs(f"{name}.query_key_value", (apart.q, apart.k, apart.v), sizes.heads)
        return LayerSpec(
            mixer=replace(apart, q=q, k=k, v=v),
            mlp=mlp(sizes, f"{prefix}.mlp.dense_h_to_4h", f"{prefix}.mlp.dense_4h_to_h"),
            mixer_norm=sizes.norm(f"{prefix}.input_layernorm"),
            mlp_norm=sizes.norm(f"{prefix}.post_attention_layernorm"),
        )

    spec = decoder(
        sizes, layer, embedding="transformer.word_embeddings", norm=sizes.norm("transformer.ln_f")
    )
    return replace(spec, embedding_norm=sizes.norm("transformer.word_embeddings_layernorm"))
