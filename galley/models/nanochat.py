"""NanoChat: norms without weights, heads rotated backwards, a squared-relu block, capped logits."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.errors import ModelError
from galley.layers.norm import HeadNormSpec, RMSNormSpec
from galley.layers.plain_mlp import PlainMLPSpec
from galley.layers.rotary import InverseRotary, Rotary
from galley.layers.weight_specs import Part
from galley.models.config import model_fields
from galley.models.decoder import DecoderSpec, LayerSpec
from galley.models.gpt import read_activation
from galley.models.llama import attention, decoder, read_sizes


def nanochat(model_info: ModelInfo) -> DecoderSpec:
    """q and k are normed after their rotation in the original: without a weight it is the same."""
    config = model_fields(model_info)
    activation = read_activation(config, "hidden_act", "relu2")
    sizes = read_sizes(config.replaced(hidden_act="silu"))
    if type(sizes.rotary) is not Rotary:
        raise ModelError(f"{config.where}: a rope_type other than 'default' is not supported")
    sizes = replace(sizes, rotary=InverseRotary(sizes.head_dim, sizes.rotary.theta))
    bias = config.flag("attention_bias", False)
    norm = RMSNormSpec(None, sizes.hidden, sizes.eps)
    head_norm = HeadNormSpec(None, sizes.head_dim, sizes.eps)

    def layer(index: int) -> LayerSpec:
        prefix = f"model.layers.{index}"
        mixer = attention(sizes, f"{prefix}.self_attn", qkv_bias=bias, out_bias=bias)
        block = PlainMLPSpec(
            up=Part(f"{prefix}.mlp.fc1", (sizes.intermediate, sizes.hidden)),
            down=Part(f"{prefix}.mlp.fc2", (sizes.hidden, sizes.intermediate)),
            activation=activation,
            bias=False,
        )
        return LayerSpec(replace(mixer, q_norm=head_norm, k_norm=head_norm), block, norm, norm)

    return replace(
        decoder(sizes, [layer(i) for i in range(sizes.layers)]),
        norm=norm,
        embedding_norm=norm,
        logits_soft_cap=config.number("final_logit_softcapping", 15.0),
    )
