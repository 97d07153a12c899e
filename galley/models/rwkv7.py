"""RWKV 7, as the checkpoints of flash-linear-attention name its tensors."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.errors import ModelError
from galley.layers.layer_norm import LayerNormSpec
from galley.layers.rwkv7 import ChannelMixSpec, FirstValue, Ranks, TimeMixSpec
from galley.layers.weight_specs import Part
from galley.loader.fields import MAX_HEAD_DIM, MAX_LAYERS
from galley.models.config import ModelFields, model_fields
from galley.models.decoder import AnyLayerSpec, DecoderSpec, LayerSpec
from galley.models.tied import with_head


def rwkv7(model_info: ModelInfo) -> DecoderSpec:
    """Two blocks a layer, each with a state; the embedding is normalised."""
    config = model_fields(model_info)
    config.require("hidden_act", "sqrelu", default="sqrelu")
    config.require("norm_first", True, default=True)
    config.require("norm_bias", True, default=True)
    if config.values.get("attn"):
        raise ModelError(f"{config.where}: attn (layers with attention) is not supported")
    hidden, vocab = config.integer("hidden_size", least=1), config.integer("vocab_size", least=1)
    eps = config.number("norm_eps", 1e-5)
    first = FirstValue()
    layers: list[AnyLayerSpec] = []
    for i in range(config.integer("num_hidden_layers", least=1, most=MAX_LAYERS)):
        prefix = f"model.layers.{i}"
        layers += [
            LayerSpec(
                _time_mix(config, f"{prefix}.attn", hidden, eps, first, i == 0),
                None,
                LayerNormSpec(f"{prefix}.attn_norm", hidden, eps),
                None,
            ),
            LayerSpec(
                ChannelMixSpec(f"{prefix}.ffn", hidden, _intermediate(config, hidden)),
                None,
                LayerNormSpec(f"{prefix}.ffn_norm", hidden, eps),
                None,
            ),
        ]
    spec = with_head(
        Part("model.embeddings", (vocab, hidden)),
        layers,
        LayerNormSpec("model.norm", hidden, eps),
        tied=config.flag("tie_word_embeddings", False),
    )
    return replace(
        spec,
        embedding_norm=LayerNormSpec("model.layers.0.pre_norm", hidden, eps),
        ignored=(*spec.ignored, "model.layers.0.attn.v_lora."),  # GGUF files have one
    )


def _time_mix(
    config: ModelFields, name: str, hidden: int, eps: float, first: FirstValue, is_first: bool
) -> TimeMixSpec:
    size = config.integer("head_dim", 64, least=1, most=MAX_HEAD_DIM)
    if hidden % size:
        raise config.wrong("head_dim", f"a divisor of {hidden}, the hidden size")
    w, a, v, g = (
        config.integer(f"{key}_low_rank_dim", least=1) for key in ("decay", "a", "v", "gate")
    )
    return TimeMixSpec(name, hidden, hidden // size, Ranks(w, a, v, g), eps, first, is_first)


def _intermediate(config: ModelFields, hidden: int) -> int:
    if config.has("intermediate_size"):
        return config.integer("intermediate_size", least=1)
    size = int(hidden * config.number("hidden_ratio", 4.0))
    return -(-size // 32) * 32
