"""Nemotron, Minitron and Jais 2: layer norms (whose weight Nemotron stores as w - 1) and a
squared-relu block."""

from __future__ import annotations

from galley.config import ModelInfo
from galley.models.config import ModelFields, model_fields, read_rotary
from galley.models.decoder import DecoderSpec, LayerSpec
from galley.models.gpt import attention, decoder, mlp, read_sizes


def nemotron(model_info: ModelInfo) -> DecoderSpec:
    config = model_fields(model_info).with_defaults(partial_rotary_factor=0.5)
    return _decoder(config, "norm_eps", plus=1.0)


def jais2(model_info: ModelInfo) -> DecoderSpec:
    config = model_fields(model_info).with_defaults(attention_bias=True, mlp_bias=True)
    return _decoder(config, "layer_norm_eps", plus=0.0)


def _decoder(config: ModelFields, eps_key: str, plus: float) -> DecoderSpec:
    """`plus`: added to the stored weights of norms."""
    sizes = read_sizes(config, eps_key=eps_key, activation="relu2", grouped=True)
    rotary = read_rotary(config, sizes.head_dim, 10000.0, partial=True)
    bias, mlp_bias = config.flag("attention_bias", False), config.flag("mlp_bias", False)

    def layer(index: int) -> LayerSpec:
        prefix = f"model.layers.{index}"
        return LayerSpec(
            mixer=attention(
                sizes, f"{prefix}.self_attn", rotary=rotary, qkv_bias=bias, out_bias=bias
            ),
            mlp=mlp(sizes, f"{prefix}.mlp.up_proj", f"{prefix}.mlp.down_proj", bias=mlp_bias),
            mixer_norm=sizes.norm(f"{prefix}.input_layernorm", plus=plus),
            mlp_norm=sizes.norm(f"{prefix}.post_attention_layernorm", plus=plus),
        )

    return decoder(sizes, layer, norm=sizes.norm("model.norm", plus=plus))
