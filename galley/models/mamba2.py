"""Mamba 2, and the reader of its sizes that hybrid families share."""

from __future__ import annotations

from galley.config import ModelInfo
from galley.layers.mamba2 import Mamba2Spec, Multipliers
from galley.layers.norm import RMSNormSpec
from galley.layers.weight_specs import Part
from galley.loader.fields import MAX_HEAD_DIM, MAX_HEADS, MAX_LAYERS
from galley.models.config import ModelFields, model_fields, read_limits
from galley.models.decoder import DecoderSpec, LayerSpec
from galley.models.tied import with_head


def read_mamba2(
    config: ModelFields,
    name: str,
    hidden: int,
    eps: float,
    multipliers: Multipliers = Multipliers(),
) -> Mamba2Spec:
    """A block with the keys that Bamba introduced (`mamba_n_heads`, …); `name`: of its tensors."""
    config.require("hidden_act", "silu", default="silu")
    heads = config.integer("mamba_n_heads", least=1, most=MAX_HEADS)
    inner = config.integer("mamba_d_ssm", config.integer("mamba_expand", 2) * hidden, least=1)
    if inner % heads:
        raise config.wrong("mamba_n_heads", f"a divisor of {inner}, the inner size")
    if config.values.get("mamba_d_head") not in (None, "auto", inner // heads):
        raise config.wrong("mamba_d_head", f"{inner // heads}, the inner size over the heads")
    return Mamba2Spec(
        name=name,
        hidden=hidden,
        heads=heads,
        head_dim=inner // heads,
        groups=read_groups(config, "mamba_n_groups", heads),
        state_size=config.integer("mamba_d_state", 256, least=1, most=MAX_HEAD_DIM),
        taps=config.integer("mamba_d_conv", 4, least=2, most=64),
        bias=config.flag("mamba_proj_bias", False),
        conv_bias=config.flag("mamba_conv_bias", True),
        dt_limits=read_limits(config, "time_step_limit"),
        eps=eps,
        norm_groups=config.integer("mamba_n_groups", 1),
        multipliers=multipliers,
    )


def read_groups(config: ModelFields, key: str, heads: int) -> int:
    """Groups of heads that share b and c. Raises ModelError where heads cannot be divided so."""
    groups = config.integer(key, 1, least=1, most=MAX_HEADS)
    if heads % groups:
        raise config.wrong(key, f"a divisor of {heads}, the number of heads")
    return groups


def mamba2(model_info: ModelInfo) -> DecoderSpec:
    """Layers of one block each, no attention."""
    config = model_fields(model_info)
    config.require("hidden_act", "silu", default="silu")
    hidden, vocab = config.integer("hidden_size", least=1), config.integer("vocab_size", least=1)
    heads = config.integer("num_heads", least=1, most=MAX_HEADS)
    head_dim = config.integer("head_dim", least=1, most=MAX_HEAD_DIM)
    if heads * head_dim != config.integer("expand", 2) * hidden:
        raise config.wrong("num_heads", "such that num_heads * head_dim = expand * hidden_size")
    groups = read_groups(config, "n_groups", heads)
    eps = config.number("layer_norm_epsilon", 1e-5)

    def layer(prefix: str) -> LayerSpec:
        mixer = Mamba2Spec(
            name=f"{prefix}.mixer",
            hidden=hidden,
            heads=heads,
            head_dim=head_dim,
            groups=groups,
            state_size=config.integer("state_size", 128, least=1, most=MAX_HEAD_DIM),
            taps=config.integer("conv_kernel", 4, least=2, most=64),
            bias=config.flag("use_bias", False),
            conv_bias=config.flag("use_conv_bias", True),
            dt_limits=read_limits(config, "time_step_limit"),
            eps=eps,
            norm_groups=groups,
        )
        return LayerSpec(mixer, None, RMSNormSpec(f"{prefix}.norm", hidden, eps), None)

    layers = config.integer("num_hidden_layers", least=1, most=MAX_LAYERS)
    return with_head(
        Part("backbone.embeddings", (vocab, hidden)),
        [layer(f"backbone.layers.{i}") for i in range(layers)],
        RMSNormSpec("backbone.norm_f", hidden, eps),
        tied=config.flag("tie_word_embeddings", False),
    )
