"""EXAONE 3 and 3.5 (Llama under other names), EXAONE 4 (norms after the blocks, windows) and
K-EXAONE (its attention, and experts)."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.layers.attention import AttentionSpec
from galley.layers.mlp import MLPSpec
from galley.layers.norm import RMSNormSpec
from galley.layers.weight_specs import Part
from galley.models.config import ModelFields, model_fields
from galley.models.decoder import DecoderSpec, LayerSpec
from galley.models.llama import Sizes, attention, decoder, layer, mlp, read_sizes, with_attention
from galley.models.mixture import deepseek_mixture, deepseek_routing, is_dense


def exaone(model_info: ModelInfo) -> DecoderSpec:
    """EXAONE 3 and 3.5."""
    config = model_fields(model_info)
    config = config.with_defaults(
        num_hidden_layers=config.values.get("num_layers"),
        rms_norm_eps=config.values.get("layer_norm_epsilon"),
        hidden_act=config.values.get("activation_function"),
    )
    sizes = read_sizes(config, eps=1e-5)

    def norm(name: str) -> RMSNormSpec:
        return RMSNormSpec(f"transformer.{name}", sizes.hidden, sizes.eps)

    def renamed(index: int) -> LayerSpec:
        prefix = f"transformer.h.{index}"
        mixer: AttentionSpec = attention(sizes, f"{prefix}.attn.attention")
        out = replace(mixer.out, name=f"{prefix}.attn.attention.out_proj")
        block: MLPSpec = mlp(sizes, f"{prefix}.mlp")
        gate, up, down = (
            replace(part, name=f"{prefix}.mlp.{name}")
            for part, name in zip(
                (block.gate, block.up, block.down), ("c_fc_0", "c_fc_1", "c_proj"), strict=True
            )
        )
        return LayerSpec(
            mixer=replace(mixer, out=out),
            mlp=replace(block, gate=gate, up=up, down=down),
            mixer_norm=norm(f"h.{index}.ln_1"),
            mlp_norm=norm(f"h.{index}.ln_2"),
        )

    return replace(
        decoder(sizes, [renamed(i) for i in range(sizes.layers)]),
        embedding=Part("transformer.wte", (sizes.vocab, sizes.hidden)),
        norm=norm("ln_f"),
    )


def exaone4(model_info: ModelInfo) -> DecoderSpec:
    """Where some layers have a window, the others have no positions."""
    config = model_fields(model_info)
    sizes = read_sizes(config, eps=1e-5)
    windows = _windows(config, sizes)

    def layer_of(index: int, window: int) -> LayerSpec:
        prefix = f"model.layers.{index}"
        usual = layer(sizes, index, window=window, qk_norm=True)
        mixer = attention(sizes, f"{prefix}.self_attn", window=window, qk_norm=True)
        if any(windows) and not window:
            mixer = replace(mixer, rotary=None)
        return replace(
            usual,
            mixer=mixer,
            mixer_norm=None,
            mlp_norm=None,
            mixer_out_norm=usual.mlp_norm,
            mlp_out_norm=RMSNormSpec(
                f"{prefix}.post_feedforward_layernorm", sizes.hidden, sizes.eps
            ),
        )

    return decoder(sizes, [layer_of(i, window) for i, window in enumerate(windows)])


def exaone_moe(model_info: ModelInfo) -> DecoderSpec:
    """EXAONE 4's attention in pre-norm layers, and DeepSeek's mixtures behind some dense layers. A
    layer that predicts a further token, which GGUF files have behind the others, is not used."""
    config = model_fields(model_info).with_defaults(first_k_dense_replace=1)
    sizes = read_sizes(config, eps=1e-5)
    windows, routing = _windows(config, sizes), deepseek_routing(config)
    layers = []
    for i, window in enumerate(windows):
        spec = layer(sizes, i, window=window, qk_norm=True)
        if any(windows) and not window:
            spec = with_attention(spec, rotary=None)
        if not is_dense(config, i):
            prefix = f"model.layers.{i}.mlp"
            moe = deepseek_mixture(config, prefix, sizes.hidden, routing)
            bias = Part(f"{prefix}.e_score_correction_bias", (routing.experts,))
            spec = replace(spec, mlp=replace(moe, choice_bias=bias))
        layers.append(spec)
    model = decoder(sizes, layers)
    return replace(model, ignored=(*model.ignored, "mtp.", f"model.layers.{sizes.layers}."))


def _windows(config: ModelFields, sizes: Sizes) -> list[int]:
    """The window of each layer; 0 = none."""
    window = config.optional_int("sliding_window")
    if window is None:
        return [0] * sizes.layers
    kinds = config.values.get("layer_types")
    if kinds is None:
        pattern = config.values.get("sliding_window_pattern", 4)
        if isinstance(pattern, int) and pattern > 0:
            pattern = "L" * (pattern - 1) + "G"
        if not isinstance(pattern, str) or not pattern or set(pattern) - {"L", "G"}:
            raise config.wrong("sliding_window_pattern", "a number or letters L and G")
        slides = [pattern[i % len(pattern)] == "L" for i in range(sizes.layers)]
        slides[-1] = False
    else:
        known = ("sliding_attention", "full_attention")
        if not isinstance(kinds, list) or len(kinds) != sizes.layers or set(kinds) - set(known):
            raise config.wrong("layer_types", f"{sizes.layers} of {' or '.join(known)}")
        slides = [kind == "sliding_attention" for kind in kinds]
    return [window if slide else 0 for slide in slides]
