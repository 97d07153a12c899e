"""DeepSeek V2, V3 and V3.2, and the families that have their architecture (Kimi K2, GLM 4.7 Flash,
GLM 5, Youtu): latent attention, and mixtures with shared experts behind some dense layers.

The sparse attention of V3.2 is computed densely: the answer is the same as long as a sequence is no
longer than `index_topk`, and no worse beyond.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.layers.latent import LatentAttentionSpec
from galley.layers.moe import MoESpec
from galley.layers.norm import RMSNormSpec
from galley.layers.rotary import YarnRotary
from galley.layers.weight_specs import Part
from galley.loader.fields import MAX_HEAD_DIM
from galley.models.config import ModelFields, model_fields, read_rotary
from galley.models.decoder import DecoderSpec
from galley.models.llama import Sizes, decoder, layer, read_sizes
from galley.models.mixture import deepseek_mixture, deepseek_routing, is_dense, read_routing

log = logging.getLogger(__name__)

#: Most elements of a latent, against nonsense.
MAX_RANK = 1 << 16


def deepseek_v3(model_info: ModelInfo) -> DecoderSpec:
    """Sigmoid scores with a correction bias."""
    config = model_fields(model_info)
    routing = deepseek_routing(config)
    return _deepseek(
        config, lambda prefix, hidden: deepseek_mixture(config, prefix, hidden, routing)
    )


def deepseek_v32(model_info: ModelInfo) -> DecoderSpec:
    """V3; what chooses the tokens to attend to is not used."""
    spec = deepseek_v3(model_info)
    top = model_fields(model_info).integer("index_topk", 2048, least=1)
    log.warning(
        "Sparse attention is computed densely: sequences of more than %d tokens attend to all "
        "of them.",
        top,
    )
    indexers = [f"model.layers.{i}.self_attn.indexer." for i in range(len(spec.layers))]
    return replace(spec, ignored=(*spec.ignored, *indexers))


def deepseek_v2(model_info: ModelInfo) -> DecoderSpec:
    """Softmax scores, of the groups with the best expert where `topk_method` says so."""
    config = model_fields(model_info)
    config.require("topk_method", "greedy", "group_limited_greedy", default="greedy")
    config.require("norm_topk_prob", False, default=False)
    routing = read_routing(
        config,
        renormalise=False,
        groups=config.text("topk_method", "greedy") == "group_limited_greedy",
        scale=config.number("routed_scaling_factor", 1.0),
    )

    def block(prefix: str, hidden: int) -> MoESpec:
        return deepseek_mixture(config, prefix, hidden, routing, choice_bias=False)

    return _deepseek(config, block)


def youtu(model_info: ModelInfo) -> DecoderSpec:
    """V3 without experts."""
    config = model_fields(model_info).with_defaults(tie_word_embeddings=True)
    return _deepseek(config, None)


def _deepseek(config: ModelFields, block: Callable[[str, int], MoESpec] | None) -> DecoderSpec:
    """`block`: prefix and hidden size → experts; None = every layer is dense."""
    sizes = latent_sizes(config)
    interleaved = config.flag("rope_interleave", True)
    layers = []
    for i in range(sizes.layers):
        prefix = f"model.layers.{i}"
        mixer = latent_attention(config, sizes, f"{prefix}.self_attn", interleaved)
        spec = replace(layer(sizes, i), mixer=mixer)
        if block is not None and not is_dense(config, i):
            spec = replace(spec, mlp=block(f"{prefix}.mlp", sizes.hidden))
        layers.append(spec)
    model = decoder(sizes, layers)
    # A layer that predicts a further token.
    return replace(model, ignored=(*model.ignored, f"model.layers.{sizes.layers}."))


def latent_sizes(config: ModelFields) -> Sizes:
    """The sizes of a model whose heads have several."""
    rope = config.integer("qk_rope_head_dim", least=2, most=MAX_HEAD_DIM)
    heads = {"head_dim": rope, "num_key_value_heads": config.integer("num_attention_heads")}
    return read_sizes(ModelFields({**config.values, **heads}, config.where))


def latent_attention(
    config: ModelFields, sizes: Sizes, prefix: str, interleaved: bool
) -> LatentAttentionSpec:
    """Latent attention with DeepSeek's keys and tensor names.

    Args:
        interleaved: of the rotary embedding, as in `Rotary`.
    """
    hidden, heads = sizes.hidden, sizes.heads
    rank = config.integer("kv_lora_rank", least=2, most=MAX_RANK)
    nope = config.integer("qk_nope_head_dim", least=1, most=MAX_HEAD_DIM)
    rope, value = sizes.head_dim, config.integer("v_head_dim", least=1, most=MAX_HEAD_DIM)
    if rank % 2:
        raise config.wrong("kv_lora_rank", "even")
    q_rank = config.optional_int("q_lora_rank")
    bias = config.flag("attention_bias", False)
    rotary = read_rotary(config, rope, 10000.0)
    scale = (nope + rope) ** -0.5
    if isinstance(rotary, YarnRotary) and rotary.mscale_all_dim:
        scale *= rotary.magnitude(rotary.mscale_all_dim) ** 2
    q_name, q_inputs = ("q_proj", hidden) if q_rank is None else ("q_b_proj", q_rank)
    return LatentAttentionSpec(
        q_down=None if q_rank is None else Part(f"{prefix}.q_a_proj", (q_rank, hidden)),
        q_norm=None if q_rank is None else RMSNormSpec(f"{prefix}.q_a_layernorm", q_rank, 1e-6),
        q=Part(f"{prefix}.{q_name}", (heads * (nope + rope), q_inputs)),
        kv_down=Part(f"{prefix}.kv_a_proj_with_mqa", (rank + rope, hidden)),
        kv_norm=RMSNormSpec(f"{prefix}.kv_a_layernorm", rank, 1e-6),
        kv_up=Part(f"{prefix}.kv_b_proj", (heads * (nope + value), rank)),
        out=Part(f"{prefix}.o_proj", (hidden, heads * value)),
        heads=heads,
        rank=rank,
        nope=nope,
        rope=rope,
        value=value,
        scale=scale,
        rotary=replace(rotary, interleaved=interleaved),
        down_bias=bias,
        out_bias=bias,
    )
