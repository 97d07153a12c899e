"""StarCoder2: layer norms and a plain feed-forward block around rotary attention."""

from __future__ import annotations

from galley.config import ModelInfo
from galley.models.config import model_fields, read_rotary
from galley.models.decoder import DecoderSpec, LayerSpec
from galley.models.gpt import attention, decoder, mlp, read_sizes


def starcoder2(model_info: ModelInfo) -> DecoderSpec:
    """Biases by config; every layer has the window that the config names."""
    config = model_fields(model_info)
    sizes = read_sizes(
        config, eps_key="norm_epsilon", activation="gelu_pytorch_tanh", tied=True, grouped=True
    )
    rotary = read_rotary(config, sizes.head_dim, 10000.0)
    bias = config.flag("use_bias", True)
    window = config.optional_int("sliding_window") or 0

    def layer(index: int) -> LayerSpec:
        prefix = f"model.layers.{index}"
        name = f"{prefix}.self_attn"
        return LayerSpec(
            mixer=attention(
                sizes, name, rotary=rotary, window=window, qkv_bias=bias, out_bias=bias
            ),
            mlp=mlp(sizes, f"{prefix}.mlp.c_fc", f"{prefix}.mlp.c_proj", bias=bias),
            mixer_norm=sizes.norm(f"{prefix}.input_layernorm"),
            mlp_norm=sizes.norm(f"{prefix}.post_attention_layernorm"),
        )

    return decoder(sizes, layer, norm=sizes.norm("model.norm"))
