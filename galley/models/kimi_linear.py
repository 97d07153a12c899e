"""Kimi Linear: Kimi delta attention in most layers, latent attention without positions in the
others, and DeepSeek's experts."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.layers.keyed_delta import KeyedDeltaSpec
from galley.layers.rotary import NoRotation
from galley.layers.weight_specs import Part
from galley.loader.fields import MAX_HEAD_DIM, MAX_HEADS, MAX_LAYERS
from galley.models.config import ModelFields, layer_kinds, model_fields
from galley.models.decoder import DecoderSpec, LayerSpec, MixerSpec
from galley.models.deepseek import latent_attention, latent_sizes
from galley.models.llama import Sizes, decoder, layer, mlp
from galley.models.mixture import deepseek_routing, experts, gated, is_dense, mixture

#: Its own names of keys that DeepSeek's readers know.
_KEYS = {
    "num_experts_per_token": "num_experts_per_tok",
    "num_shared_experts": "n_shared_experts",
    "num_expert_group": "n_group",
    "moe_renormalize": "norm_topk_prob",
}


def kimi_linear(model_info: ModelInfo) -> DecoderSpec:
    config = _common_keys(model_fields(model_info))
    config.require("moe_router_activation_func", "sigmoid", default="sigmoid")
    config.require("mla_use_nope", True, default=True)
    sizes = latent_sizes(config)
    kinds = _kinds(config, sizes.layers)
    return decoder(sizes, [_layer(config, sizes, i, kind) for i, kind in enumerate(kinds)])


def _common_keys(config: ModelFields) -> ModelFields:
    values = {common: config.values.get(own) for own, common in _KEYS.items()}
    given = {key: value for key, value in values.items() if value is not None}
    return config.with_defaults(first_k_dense_replace=1).replaced(**given)


def _kinds(config: ModelFields, layers: int) -> list[str]:
    """`layer_types`, or the two lists of layers, counted from 1, of published configs."""
    known = ("linear_attention", "full_attention")
    if config.has("layer_types"):
        return layer_kinds(config, layers, known)
    full: Any = config.within("linear_attn_config").values.get("full_attn_layers")
    if not isinstance(full, list) or not all(
        isinstance(i, int) and 0 < i <= MAX_LAYERS for i in full
    ):
        raise config.wrong("linear_attn_config", "an object with full_attn_layers, a list")
    return [known[i + 1 in full] for i in range(layers)]


def _layer(config: ModelFields, sizes: Sizes, index: int, kind: str) -> LayerSpec:
    prefix = f"model.layers.{index}"
    mixer: MixerSpec
    if kind == "full_attention":
        spec = latent_attention(config, sizes, f"{prefix}.self_attn", interleaved=False)
        still = NoRotation(spec.rope, theta=1.0)
        mixer = replace(spec, rotary=still, scale=(spec.nope + spec.rope) ** -0.5)
    else:
        mixer = _delta(config, sizes, f"{prefix}.self_attn")
    one = replace(layer(sizes, index), mixer=mixer)
    name = f"{prefix}.block_sparse_moe"
    if _is_dense(config, index):
        # Transformers saves it under the name of the experts.
        own, saved = mlp(sizes, f"{prefix}.mlp"), mlp(sizes, name)
        gate, up, down = (
            replace(getattr(own, part), otherwise=getattr(saved, part))
            for part in ("gate", "up", "down")
        )
        return replace(one, mlp=replace(own, gate=gate, up=up, down=down))
    routing = deepseek_routing(config)
    size = config.integer("moe_intermediate_size", least=1)
    shared = config.integer("n_shared_experts", 0)
    parts = experts(
        f"{name}.experts", routing.experts, sizes.hidden, size, names=("w1", "w3", "w2")
    )
    moe = mixture(
        name,
        sizes.hidden,
        routing,
        parts,
        choice_bias=Part(f"{name}.gate.e_score_correction_bias", (routing.experts,)),
        shared=gated(f"{name}.shared_experts", sizes.hidden, shared * size) if shared else None,
    )
    return replace(one, mlp=moe)


def _is_dense(config: ModelFields, index: int) -> bool:
    kinds: Any = config.values.get("mlp_layer_types")
    if isinstance(kinds, list) and index < len(kinds):
        return bool(kinds[index] == "dense")
    return is_dense(config, index)


def _delta(config: ModelFields, sizes: Sizes, name: str) -> KeyedDeltaSpec:
    given = config.within("linear_attn_config")

    def size(key: str, published: str, most: int) -> int:
        return config.integer(key, given.integer(published, 0), least=1, most=most)

    return KeyedDeltaSpec(
        name=name,
        hidden=sizes.hidden,
        heads=size("linear_num_heads", "num_heads", MAX_HEADS),
        head_dim=size("linear_head_dim", "head_dim", MAX_HEAD_DIM),
        taps=size("linear_conv_kernel_dim", "short_conv_kernel_size", 64),
        eps=sizes.eps,
    )
