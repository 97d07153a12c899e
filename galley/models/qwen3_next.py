"""Qwen3-Next and the text model of Qwen3.5: gated delta nets, and gated attention in between."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.layers.attention import AttentionSpec
from galley.layers.gated_delta_net import GatedDeltaNetSpec
from galley.layers.norm import HeadNormSpec, RMSNormSpec
from galley.layers.weight_specs import Part, fuse, fuse_runs
from galley.loader.fields import MAX_HEAD_DIM, MAX_HEADS
from galley.models.config import ModelFields, layer_kinds, model_fields
from galley.models.decoder import DecoderSpec, FeedForwardSpec, LayerSpec
from galley.models.llama import Sizes, attention, decoder, mlp, read_sizes
from galley.models.qwen_moe import is_sparse, shared_mixture


def qwen3_next(model_info: ModelInfo) -> DecoderSpec:
    """Projections of the delta net are two tensors, by key head; layers may have experts."""
    config = model_fields(model_info)
    values = {"norm_topk_prob": True, "num_experts": 512, **config.values}
    return _model(ModelFields(values, config.where), by_head=True)


def qwen3_5(model_info: ModelInfo) -> DecoderSpec:
    """Projections of the delta net are four tensors; no experts."""
    return _model(model_fields(model_info), by_head=False)


def qwen3_5_moe(model_info: ModelInfo) -> DecoderSpec:
    """The same with experts in all layers."""
    config = model_fields(model_info)
    values = {"num_experts": 256, **config.values, "norm_topk_prob": True}
    return _model(ModelFields(values, config.where), by_head=False)


def _model(config: ModelFields, by_head: bool) -> DecoderSpec:
    whole = ModelFields({"partial_rotary_factor": 0.25, **config.values}, config.where)
    sizes = read_sizes(whole, partial_rotary=True)
    layers = [
        _layer(config, sizes, i, kind, by_head)
        for i, kind in enumerate(_kinds(config, sizes.layers))
    ]
    spec = decoder(sizes, layers)
    return replace(
        spec,
        norm=RMSNormSpec("model.norm", sizes.hidden, sizes.eps, plus=1.0),
        ignored=(*spec.ignored, "mtp."),
    )


def _kinds(config: ModelFields, layers: int) -> list[str]:
    if config.has("layer_types"):
        return layer_kinds(config, layers, ("linear_attention", "full_attention"))
    each = config.integer("full_attention_interval", 4, least=1)
    return ["linear_attention" if (i + 1) % each else "full_attention" for i in range(layers)]


def _layer(config: ModelFields, sizes: Sizes, index: int, kind: str, by_head: bool) -> LayerSpec:
    prefix = f"model.layers.{index}"
    before, after = (
        RMSNormSpec(f"{prefix}.{name}", sizes.hidden, sizes.eps, plus=1.0)
        for name in ("input_layernorm", "post_attention_layernorm")
    )
    return LayerSpec(
        mixer=(
            _attention(config, sizes, f"{prefix}.self_attn")
            if kind == "full_attention"
            else _delta_net(config, sizes, f"{prefix}.linear_attn", by_head)
        ),
        mlp=_feed_forward(config, sizes, index),
        mixer_norm=before,
        mlp_norm=after,
    )


def _attention(config: ModelFields, sizes: Sizes, name: str) -> AttentionSpec:
    """The query projection of each head is followed by that of its gate."""
    bias = config.flag("attention_bias", False)
    spec = attention(sizes, name, qkv_bias=bias, out_bias=bias)
    q, gate = fuse_runs(f"{name}.q_proj", [spec.q, spec.q], sizes.heads)
    return replace(
        spec,
        q=q,
        gate=gate,
        q_norm=HeadNormSpec(f"{name}.q_norm", sizes.head_dim, sizes.eps, plus=1.0),
        k_norm=HeadNormSpec(f"{name}.k_norm", sizes.head_dim, sizes.eps, plus=1.0),
    )


def _delta_net(config: ModelFields, sizes: Sizes, name: str, by_head: bool) -> GatedDeltaNetSpec:
    key_heads = config.integer("linear_num_key_heads", least=1, most=MAX_HEADS)
    heads = config.integer("linear_num_value_heads", least=1, most=MAX_HEADS)
    keys = config.integer("linear_key_head_dim", least=1, most=MAX_HEAD_DIM)
    values = config.integer("linear_value_head_dim", least=1, most=MAX_HEAD_DIM)
    if heads % key_heads:
        raise config.wrong("linear_num_value_heads", f"a multiple of {key_heads}, the key heads")
    h = sizes.hidden
    q, v, b = (Part("", (n, h)) for n in (key_heads * keys, heads * values, heads))
    qkvz = [*fuse(f"{name}.in_proj_qkv", [q, q, v]), replace(v, name=f"{name}.in_proj_z")]
    ba = [replace(b, name=f"{name}.in_proj_{part}") for part in "ba"]
    if by_head:
        if not config.flag("split_qkvz", False):  # as in GGUF files
            qkvz = fuse_runs(f"{name}.in_proj_qkvz", [q, q, v, v], key_heads)
        ba = fuse_runs(f"{name}.in_proj_ba", [b, b], key_heads)
    return GatedDeltaNetSpec(
        name=name,
        hidden=h,
        qkvz=tuple(qkvz),
        ba=tuple(ba),
        key_heads=key_heads,
        heads=heads,
        keys=keys,
        values=values,
        taps=config.integer("linear_conv_kernel_dim", 4, least=2, most=64),
        eps=sizes.eps,
        in_turn=config.flag("value_heads_in_turn", False),
    )


def _feed_forward(config: ModelFields, sizes: Sizes, index: int) -> FeedForwardSpec:
    name = f"model.layers.{index}.mlp"
    if config.integer("num_experts", 0) and is_sparse(config, index):
        return shared_mixture(config, name, sizes.hidden)
    return mlp(sizes, name)
