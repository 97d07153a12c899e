"""Llama 4 (text): most layers attend within parts of the sequence, the others have no positions;
experts whose inputs are weighted, beside one for all tokens."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.kernels.ops.route import Score
from galley.layers.attention import AttentionSpec
from galley.layers.moe import MoESpec
from galley.layers.norm import HeadNormSpec
from galley.layers.rotary import NoRotation
from galley.models.config import ModelFields, model_fields
from galley.models.decoder import DecoderSpec
from galley.models.llama import Sizes, attention, decoder, layer, read_sizes
from galley.models.mixture import experts, gated, mixture, read_routing


def llama4(model_info: ModelInfo) -> DecoderSpec:
    config = model_fields(model_info)
    sizes = read_sizes(config, theta=500000.0, eps=1e-5)
    sizes = replace(sizes, rotary=replace(sizes.rotary, interleaved=True))
    rotated = _list(config, "no_rope_layers", sizes.layers)
    if not rotated:
        interval = config.integer("no_rope_layer_interval", 4, least=1)
        rotated = [int((i + 1) % interval != 0) for i in range(sizes.layers)]
    sparse = config.values.get("moe_layers")
    step = config.integer("interleave_moe_layer_step", 1, least=1)
    dense = config.integer("intermediate_size_mlp", sizes.intermediate, least=1)
    layers = []
    for i, has_rotary in enumerate(rotated):
        prefix = f"model.layers.{i}"
        block = (
            _mixture(config, sizes, f"{prefix}.feed_forward")
            if (i in sparse if isinstance(sparse, list) else (i + 1) % step == 0)
            else gated(f"{prefix}.feed_forward", sizes.hidden, dense)
        )
        mixer = _attention(config, sizes, f"{prefix}.self_attn", bool(has_rotary))
        layers.append(replace(layer(sizes, i), mixer=mixer, mlp=block))
    return decoder(sizes, layers)


def _list(config: ModelFields, key: str, length: int) -> list[int]:
    values = config.values.get(key) or []
    if not isinstance(values, list) or (values and len(values) != length):
        raise config.wrong(key, f"a list of {length} numbers")
    return values


def _attention(config: ModelFields, sizes: Sizes, prefix: str, has_rotary: bool) -> AttentionSpec:
    """Layers without positions make the scores of later queries larger instead."""
    bias = config.flag("attention_bias", False)
    spec = attention(sizes, prefix, qkv_bias=bias, out_bias=bias)
    if has_rotary:
        norm = None
        if config.flag("use_qk_norm", True):
            # After the rotation, which changes no length: before it, the fused op can do both.
            norm = HeadNormSpec(None, sizes.head_dim, sizes.eps)
        window = config.optional_int("attention_chunk_size") or 0
        return replace(spec, window=window, window_in_parts=window > 0, q_norm=norm, k_norm=norm)
    spec = replace(spec, rotary=None)
    if not config.flag("attn_temperature_tuning", True):
        return spec
    growth = config.number("attn_scale", 0.1), config.integer("floor_scale", 8192, least=1)
    return replace(spec, q_rotary=NoRotation(sizes.head_dim, 1.0, growth=growth, growth_offset=1))


def _mixture(config: ModelFields, sizes: Sizes, prefix: str) -> MoESpec:
    routing = read_routing(config, score=Score.sigmoid, renormalise=False)
    i, hidden = sizes.intermediate, sizes.hidden
    parts = experts(f"{prefix}.experts", routing.experts, hidden, i, transposed=True)
    return mixture(
        prefix,
        hidden,
        routing,
        parts,
        router="router",
        weigh_inputs=True,
        shared=gated(f"{prefix}.shared_expert", hidden, i),
    )
