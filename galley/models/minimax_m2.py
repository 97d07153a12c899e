"""MiniMax-M2: sigmoid scores with a correction bias; q and k are normalised over all heads
together, and heads rotated in part."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.kernels.ops.route import Score
from galley.layers.norm import RMSNormSpec
from galley.layers.weight_specs import Part
from galley.models.config import model_fields
from galley.models.decoder import DecoderSpec, LayerSpec
from galley.models.llama import attention, decoder, layer, read_sizes
from galley.models.mixture import experts, mixture, read_routing


def minimax_m2(model_info: ModelInfo) -> DecoderSpec:
    config = model_fields(model_info)
    if config.has("rotary_dim"):
        part = config.integer("rotary_dim", least=2) / config.integer("head_dim", least=2)
        config = config.with_defaults(partial_rotary_factor=part)
    sizes = read_sizes(config, theta=5000000.0, partial_rotary=True)
    routing = read_routing(config, score=Score.sigmoid)

    def one(index: int) -> LayerSpec:
        prefix = f"model.layers.{index}"
        moe = f"{prefix}.block_sparse_moe"
        q, k = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
        mixer = replace(
            attention(sizes, f"{prefix}.self_attn"),
            q_norm=RMSNormSpec(f"{prefix}.self_attn.q_norm", q, sizes.eps),
            k_norm=RMSNormSpec(f"{prefix}.self_attn.k_norm", k, sizes.eps),
        )
        parts = experts(
            f"{moe}.experts",
            routing.experts,
            sizes.hidden,
            sizes.intermediate,
            names=("w1", "w3", "w2"),
        )
        bias = Part(f"{moe}.e_score_correction_bias", (routing.experts,))
        block = mixture(moe, sizes.hidden, routing, parts, choice_bias=bias)
        return replace(layer(sizes, index), mixer=mixer, mlp=block)

    return decoder(sizes, [one(i) for i in range(sizes.layers)])
