"""Encoders of T5, mT5 and UMT5: no positions but a bias by distance, scores that are not scaled."""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.layers.distance_bias import DistanceBiasSpec
from galley.layers.mlp import MLPSpec
from galley.layers.norm import RMSNormSpec
from galley.layers.plain_mlp import PlainMLPSpec
from galley.layers.weight_specs import Part
from galley.loader.fields import MAX_LAYERS
from galley.models.config import ModelFields, model_fields
from galley.models.decoder import DecoderSpec, FeedForwardSpec, LayerSpec
from galley.models.heads import plain_attention, read_heads


def t5(model_info: ModelInfo) -> DecoderSpec:
    """All layers have the biases of the first."""
    return _t5(model_info, lambda index: 0)


def umt5(model_info: ModelInfo) -> DecoderSpec:
    """Each layer has biases of its own."""
    return _t5(model_info, lambda index: index)


def _t5(model_info: ModelInfo, owner: Callable[[int], int]) -> DecoderSpec:
    config = model_fields(model_info)
    config = config.with_defaults(
        num_attention_heads=config.integer("num_heads", least=1),
        num_hidden_layers=config.integer("num_layers", least=1, most=MAX_LAYERS),
        intermediate_size=config.integer("d_ff", least=1),
        head_dim=config.integer("d_kv", least=2),
    )
    heads = read_heads(config, grouped=False)
    buckets = config.integer("relative_attention_num_buckets", 32, least=4)
    most = config.integer("relative_attention_max_distance", 128, least=buckets // 4 + 1)
    feed_forward = _feed_forward(config, heads.hidden)

    def norm(name: str) -> RMSNormSpec:
        return RMSNormSpec(name, heads.hidden, config.number("layer_norm_epsilon", 1e-6))

    def layer(index: int) -> LayerSpec:
        prefix = f"encoder.block.{index}.layer"
        usual = plain_attention(heads, "", None)
        names = {
            key: replace(getattr(usual, key), name=f"{prefix}.0.SelfAttention.{tensor}")
            for key, tensor in (("q", "q"), ("k", "k"), ("v", "v"), ("out", "o"))
        }
        table = Part(
            f"encoder.block.{owner(index)}.layer.0.SelfAttention.relative_attention_bias.weight",
            (buckets, heads.heads),
        )
        biases = DistanceBiasSpec(table, most)
        return LayerSpec(
            mixer=replace(usual, **names, scale=1.0, causal=False, biases=biases),
            mlp=feed_forward(f"{prefix}.1.DenseReluDense"),
            mixer_norm=norm(f"{prefix}.0.layer_norm"),
            mlp_norm=norm(f"{prefix}.1.layer_norm"),
        )

    return DecoderSpec(
        embedding=Part("shared", (config.integer("vocab_size", least=1), heads.hidden)),
        layers=[layer(i) for i in range(config.integer("num_hidden_layers"))],
        norm=norm("encoder.final_layer_norm"),
        head=None,
        # Of checkpoints of the whole model.
        ignored=("decoder.", "encoder.embed_tokens.", "lm_head."),
    )


def _feed_forward(config: ModelFields, hidden: int) -> Callable[[str], FeedForwardSpec]:
    """The feed-forward block of a prefix, as `feed_forward_proj` names it."""
    kind = config.text("feed_forward_proj", "relu")
    size = config.integer("intermediate_size", least=1)
    up, down = Part("", (size, hidden)), Part("", (hidden, size))
    if kind == "relu":
        return lambda prefix: PlainMLPSpec(
            up=replace(up, name=f"{prefix}.wi"),
            down=replace(down, name=f"{prefix}.wo"),
            activation="relu",
        )
    if kind != "gated-gelu":
        raise config.wrong("feed_forward_proj", "relu or gated-gelu")
    return lambda prefix: MLPSpec(
        gate=replace(up, name=f"{prefix}.wi_0"),
        up=replace(up, name=f"{prefix}.wi_1"),
        down=replace(down, name=f"{prefix}.wo"),
        activation="gelu_tanh",
    )
