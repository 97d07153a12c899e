"""Mamba 1 and Falcon Mamba."""

from __future__ import annotations

from galley.config import ModelInfo
from galley.layers.mamba import MambaSpec
from galley.layers.norm import RMSNormSpec
from galley.layers.weight_specs import Part
from galley.loader.fields import MAX_HEAD_DIM, MAX_LAYERS
from galley.models.config import ModelFields, model_fields
from galley.models.decoder import DecoderSpec, LayerSpec
from galley.models.tied import with_head


def mamba(model_info: ModelInfo) -> DecoderSpec:
    """Layers of one block each, no attention."""
    return _model(model_fields(model_info), None)


def falcon_mamba(model_info: ModelInfo) -> DecoderSpec:
    """As Mamba, with norms without weights of b, c and the time steps."""
    config = model_fields(model_info)
    return _model(config, config.number("mixer_rms_eps", 1e-6))


def read_rank(config: ModelFields, key: str, hidden: int) -> int:
    """The rank of the time steps; "auto" = a sixteenth of the hidden size."""
    if config.values.get(key) in (None, "auto"):
        return -(-hidden // 16)
    return config.integer(key, least=1)


def _model(config: ModelFields, norm_eps: float | None) -> DecoderSpec:
    config.require("hidden_act", "silu", default="silu")
    hidden, vocab = config.integer("hidden_size", least=1), config.integer("vocab_size", least=1)
    inner = config.integer("intermediate_size", config.integer("expand", 2) * hidden, least=1)
    eps = config.number("layer_norm_epsilon", 1e-5)

    def layer(prefix: str) -> LayerSpec:
        mixer = MambaSpec(
            name=f"{prefix}.mixer",
            hidden=hidden,
            inner=inner,
            state_size=config.integer("state_size", 16, least=1, most=MAX_HEAD_DIM),
            rank=read_rank(config, "time_step_rank", hidden),
            taps=config.integer("conv_kernel", 4, least=2, most=64),
            bias=config.flag("use_bias", False),
            conv_bias=config.flag("use_conv_bias", True),
            norm_eps=norm_eps,
        )
        return LayerSpec(mixer, None, RMSNormSpec(f"{prefix}.norm", hidden, eps), None)

    layers = config.integer("num_hidden_layers", least=1, most=MAX_LAYERS)
    return with_head(
        Part("backbone.embeddings", (vocab, hidden)),
        [layer(f"backbone.layers.{i}") for i in range(layers)],
        RMSNormSpec("backbone.norm_f", hidden, eps),
        tied=config.flag("tie_word_embeddings", True),
    )
