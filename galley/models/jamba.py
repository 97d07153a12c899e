"""Jamba: Mamba-1 layers, attention without positions in some; experts in some."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.layers.mamba import MambaSpec
from galley.layers.norm import RMSNormSpec
from galley.loader.fields import MAX_HEAD_DIM
from galley.models.config import ModelFields, layer_kinds, model_fields
from galley.models.decoder import DecoderSpec, FeedForwardSpec, LayerSpec
from galley.models.llama import Sizes, attention, decoder, mlp, read_sizes
from galley.models.mamba import read_rank
from galley.models.mixture import experts, mixture, read_routing


def jamba(model_info: ModelInfo) -> DecoderSpec:
    """Periods and offsets say which layers attend, and which have experts."""
    config = model_fields(model_info)
    sizes = read_sizes(config)
    if config.has("layers_block_type"):
        kinds = layer_kinds(config, sizes.layers, ("linear_attention", "full_attention"))
        attend = [kind == "full_attention" for kind in kinds]
    else:
        attend = [_is_one(config, "attn_layer", 8, 4, i) for i in range(sizes.layers)]
    return replace(
        decoder(sizes, [_layer(config, sizes, i, attends) for i, attends in enumerate(attend)]),
        norm=RMSNormSpec("model.final_layernorm", sizes.hidden, sizes.eps),
    )


def _layer(config: ModelFields, sizes: Sizes, index: int, attends: bool) -> LayerSpec:
    prefix, hidden = f"model.layers.{index}", sizes.hidden
    return LayerSpec(
        mixer=(
            replace(attention(sizes, f"{prefix}.self_attn"), rotary=None)
            if attends
            else _mamba(config, sizes, f"{prefix}.mamba")
        ),
        mlp=_feed_forward(config, sizes, f"{prefix}.feed_forward", index),
        mixer_norm=RMSNormSpec(f"{prefix}.input_layernorm", hidden, sizes.eps),
        mlp_norm=RMSNormSpec(f"{prefix}.pre_ff_layernorm", hidden, sizes.eps),
    )


def _is_one(config: ModelFields, key: str, period: int, offset: int, index: int) -> bool:
    """Whether a layer is one of those that `key`_period and `key`_offset name."""
    period = config.integer(f"{key}_period", period, least=1)
    return index % period == config.integer(f"{key}_offset", offset)


def _mamba(config: ModelFields, sizes: Sizes, name: str) -> MambaSpec:
    return MambaSpec(
        name=name,
        hidden=sizes.hidden,
        inner=config.integer("mamba_expand", 2, least=1) * sizes.hidden,
        state_size=config.integer("mamba_d_state", 16, least=1, most=MAX_HEAD_DIM),
        rank=read_rank(config, "mamba_dt_rank", sizes.hidden),
        taps=config.integer("mamba_d_conv", 4, least=2, most=64),
        bias=config.flag("mamba_proj_bias", False),
        conv_bias=config.flag("mamba_conv_bias", True),
        norm_eps=sizes.eps,
        norm_weights=True,
    )


def _feed_forward(config: ModelFields, sizes: Sizes, name: str, index: int) -> FeedForwardSpec:
    if config.integer("num_experts", 16) < 2 or not _is_one(config, "expert_layer", 2, 1, index):
        return mlp(sizes, name)
    routing = read_routing(config, renormalise=False)
    parts = experts(f"{name}.experts", routing.experts, sizes.hidden, sizes.intermediate)
    return mixture(name, sizes.hidden, routing, parts, router="router")
