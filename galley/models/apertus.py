"""Apertus: norms of q and k, a plain feed-forward block of xIELU with learned parameters."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.layers.norm import RMSNormSpec
from galley.layers.plain_mlp import PlainMLPSpec
from galley.layers.weight_specs import Part
from galley.models.config import model_fields
from galley.models.decoder import DecoderSpec, LayerSpec
from galley.models.llama import decoder, layer, mlp, read_sizes


def apertus(model_info: ModelInfo) -> DecoderSpec:
    config = model_fields(model_info)
    config.require("hidden_act", "xielu", default="xielu")
    sizes = read_sizes(config.replaced(hidden_act="silu"), theta=12_000_000.0, eps=1e-5)
    bias = config.flag("attention_bias", False)

    def plain_layer(index: int) -> LayerSpec:
        prefix = f"model.layers.{index}"
        gated = mlp(sizes, f"{prefix}.mlp")
        shapes = {"alpha_p": (1,), "alpha_n": (1,), "beta": (), "eps": ()}
        parameters = [Part(f"{prefix}.mlp.act_fn.{name}", shapes[name]) for name in shapes]
        return replace(
            layer(sizes, index, qkv_bias=bias, out_bias=bias, qk_norm=True),
            mlp=PlainMLPSpec(gated.up, gated.down, "xielu", parameters=tuple(parameters)),
            mixer_norm=RMSNormSpec(f"{prefix}.attention_layernorm", sizes.hidden, sizes.eps),
            mlp_norm=RMSNormSpec(f"{prefix}.feedforward_layernorm", sizes.hidden, sizes.eps),
        )

    return decoder(sizes, [plain_layer(i) for i in range(sizes.layers)])
