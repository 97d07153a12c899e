"""Llama and the families that differ from it by a config value: Llama 2 and 3, SmolLM2, Mistral."""

from __future__ import annotations

from galley.config import ModelInfo
from galley.errors import ModelError
from galley.layers.attention import AttentionShape
from galley.layers.weights import WeightSource
from galley.models.config import ModelFields, model_fields, read_rotary
from galley.models.decoder import Decoder, DecoderSpec, Stage


def read_attention(
    config: ModelFields, qkv_bias: bool, out_bias: bool, qk_norm_eps: float | None = None
) -> AttentionShape:
    """Sizes in the keys that all these families share."""
    hidden = config.integer("hidden_size", least=1)
    heads = config.integer("num_attention_heads", least=1)
    kv_heads = config.integer("num_key_value_heads", heads, least=1)
    head_dim = config.integer("head_dim", hidden // heads, least=2)
    if heads % kv_heads:
        raise config.wrong("num_key_value_heads", f"a divisor of {heads}, the number of heads")
    if head_dim % 2:
        raise config.wrong("head_dim", "even")
    return AttentionShape(hidden, heads, kv_heads, head_dim, qkv_bias, out_bias, qk_norm_eps)


def read_spec(
    config: ModelFields,
    attention: AttentionShape,
    windows: list[int],
    *,
    mlp_bias: bool = False,
    theta: float = 10000.0,
) -> DecoderSpec:
    """The rest of a decoder. `theta` is the family's rotary base where the config names none."""
    config.require("hidden_act", "silu", default="silu")
    return DecoderSpec(
        vocab=config.integer("vocab_size", least=1),
        intermediate=config.integer("intermediate_size", least=1),
        attention=attention,
        mlp_bias=mlp_bias,
        norm_eps=config.number("rms_norm_eps", 1e-6),
        rotary=read_rotary(config, attention.head_dim, theta),
        windows=windows,
        tied=config.flag("tie_word_embeddings", False),
    )


class LlamaForCausalLM(Decoder):
    """Biases by config, no window."""

    def __init__(self, model_info: ModelInfo, source: WeightSource, stage: Stage) -> None:
        config = model_fields(model_info)
        bias = config.flag("attention_bias", False)
        layers = config.integer("num_hidden_layers", least=1)
        spec = read_spec(
            config,
            read_attention(config, qkv_bias=bias, out_bias=bias),
            [0] * layers,
            mlp_bias=config.flag("mlp_bias", False),
        )
        super().__init__(spec, source, stage)


class MistralForCausalLM(Decoder):
    """No biases; every layer slides where the config names a window."""

    def __init__(self, model_info: ModelInfo, source: WeightSource, stage: Stage) -> None:
        config = model_fields(model_info)
        if config.has("layer_types"):
            raise ModelError(f"{config.where}: layer_types is not supported for Mistral")
        window = config.optional_int("sliding_window") or 0
        layers = config.integer("num_hidden_layers", least=1)
        attention = read_attention(config, qkv_bias=False, out_bias=False)
        super().__init__(read_spec(config, attention, [window] * layers), source, stage)
