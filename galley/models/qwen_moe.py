"""Qwen2-MoE, Qwen3-MoE and Mellum 2: some layers are dense; Qwen2 has a gated shared expert."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.layers.moe import MoESpec
from galley.layers.weight_specs import Part
from galley.models.config import (
    ModelFields,
    attention_kinds,
    layer_windows,
    model_fields,
    read_rotary,
    rope_of_kind,
    window_of,
)
from galley.models.decoder import DecoderSpec
from galley.models.llama import decoder, layer, read_sizes
from galley.models.mixture import experts, gated, is_dense, mixture, read_routing


def qwen2_moe(model_info: ModelInfo) -> DecoderSpec:
    """As Qwen2, with a shared expert whose output has a sigmoid gate."""
    config = model_fields(model_info)
    sizes = read_sizes(config)
    qkv_bias = config.flag("qkv_bias", True)
    layers = []
    for i, window in enumerate(layer_windows(config, sizes.layers)):
        spec = layer(sizes, i, window=window, qkv_bias=qkv_bias)
        if is_sparse(config, i):
            spec = replace(spec, mlp=shared_mixture(config, f"model.layers.{i}.mlp", sizes.hidden))
        layers.append(spec)
    return decoder(sizes, layers)


def qwen3_moe(model_info: ModelInfo) -> DecoderSpec:
    """As Qwen3."""
    config = model_fields(model_info)
    sizes = read_sizes(config)
    bias = config.flag("attention_bias", False)
    layers = []
    for i, window in enumerate(layer_windows(config, sizes.layers)):
        spec = layer(sizes, i, window=window, qkv_bias=bias, out_bias=bias, qk_norm=True)
        if is_sparse(config, i):
            spec = replace(spec, mlp=qwen_mixture(config, f"model.layers.{i}.mlp", sizes.hidden))
        layers.append(spec)
    return decoder(sizes, layers)


def mellum(model_info: ModelInfo) -> DecoderSpec:
    """Qwen3-MoE with windows on some layers, which have a rotary embedding of their own."""
    config = model_fields(model_info)
    sizes = read_sizes(rope_of_kind(config, "full_attention"), theta=500000.0)
    kinds = attention_kinds(config, sizes.layers, lambda i: "full_attention")
    window, bias = window_of(config, kinds), config.flag("attention_bias", False)
    local = sizes
    if window:
        rotary = read_rotary(rope_of_kind(config, "sliding_attention"), sizes.head_dim, 10000.0)
        local = replace(sizes, rotary=rotary)
    layers = []
    for i, kind in enumerate(kinds):
        of_kind, seen = (local, window) if kind == "sliding_attention" else (sizes, 0)
        spec = layer(of_kind, i, window=seen, qkv_bias=bias, out_bias=bias, qk_norm=True)
        if not is_dense(config, i):
            spec = replace(spec, mlp=qwen_mixture(config, f"model.layers.{i}.mlp", sizes.hidden))
        layers.append(spec)
    model = decoder(sizes, layers)
    return replace(model, ignored=(*model.ignored, "mtp."))


def is_sparse(config: ModelFields, index: int) -> bool:
    """Whether a layer has experts: every `decoder_sparse_step`th, but none of `mlp_only_layers`."""
    dense = config.values.get("mlp_only_layers") or []
    if not isinstance(dense, list):
        raise config.wrong("mlp_only_layers", "a list of layers")
    step = config.integer("decoder_sparse_step", 1, least=1)
    return index not in dense and (index + 1) % step == 0


def qwen_mixture(config: ModelFields, prefix: str, hidden: int) -> MoESpec:
    """Experts of `moe_intermediate_size` under `prefix`."""
    renormalise = config.flag("norm_topk_prob", False)
    routing = read_routing(config, renormalise=renormalise)
    intermediate = config.integer("moe_intermediate_size", least=1)
    parts = experts(
        f"{prefix}.experts",
        routing.experts,
        hidden,
        intermediate,
        transposed=config.flag("experts_transposed", False),
    )
    return mixture(prefix, hidden, routing, parts)


def shared_mixture(config: ModelFields, prefix: str, hidden: int) -> MoESpec:
    """The same beside a shared expert whose output has a sigmoid gate."""
    shared = config.integer("shared_expert_intermediate_size", least=1)
    return replace(
        qwen_mixture(config, prefix, hidden),
        shared=gated(f"{prefix}.shared_expert", hidden, shared),
        shared_gate=Part(f"{prefix}.shared_expert_gate", (1, hidden)),
    )
