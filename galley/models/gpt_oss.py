"""gpt-oss: attention sinks, every other layer with a window, biases everywhere, and experts with a
clamped SwiGLU. Experts are stored in one tensor, transposed, with the outputs of gate and up in
turn."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.kernels.ops.experts import Activation
from galley.kernels.ops.route import Score
from galley.layers.moe import MoESpec
from galley.layers.rotary import YarnRotary
from galley.layers.weight_specs import Part, Stack
from galley.models.config import ModelFields, layer_windows, model_fields
from galley.models.decoder import DecoderSpec
from galley.models.llama import Sizes, attention, decoder, layer, read_sizes
from galley.models.mixture import Experts, mixture, read_routing


def gpt_oss(model_info: ModelInfo) -> DecoderSpec:
    config = model_fields(model_info)
    sizes = read_sizes(config, theta=150000.0, eps=1e-5)
    rope = config.table("rope_parameters") or config.table("rope_scaling")
    if isinstance(sizes.rotary, YarnRotary) and "truncate" not in rope:
        sizes = replace(sizes, rotary=replace(sizes.rotary, truncate=False))
    bias = config.flag("attention_bias", True)
    windows = layer_windows(config.with_defaults(use_sliding_window=True), sizes.layers)
    layers = []
    for i, window in enumerate(windows):
        prefix = f"model.layers.{i}"
        mixer = replace(
            attention(sizes, f"{prefix}.self_attn", window=window, qkv_bias=bias, out_bias=bias),
            sinks=Part(f"{prefix}.self_attn.sinks", (sizes.heads,)),
        )
        moe = _mixture(config, sizes, f"{prefix}.mlp")
        layers.append(replace(layer(sizes, i), mixer=mixer, mlp=moe))
    return decoder(sizes, layers)


def _mixture(config: ModelFields, sizes: Sizes, prefix: str) -> MoESpec:
    routing = read_routing(config, score=Score.softmax_of_chosen)
    count, i, hidden = routing.experts, sizes.intermediate, sizes.hidden
    name = f"{prefix}.experts.gate_up_proj"
    both, down = (count, hidden, 2 * i), f"{prefix}.experts.down_proj"

    def part(kind: str, stack: Stack, *shape: int) -> Part:
        return Part(f"{prefix}.experts.{{}}.{kind}", shape, stack=stack)

    def bias(kind: str, stack: str, outputs: tuple[int, int, int], size: int) -> Part:
        whole = (count, 2 * i if stack == name else hidden)
        return part(f"{kind}.bias", Stack(f"{stack}_bias", whole, outputs), size)

    gates, ups, outs = (0, 2 * i, 2), (1, 2 * i, 2), (0, hidden, 1)
    parts = Experts(
        part("gate_proj", Stack(name, both, gates, transposed=True), i, hidden),
        part("up_proj", Stack(name, both, ups, transposed=True), i, hidden),
        part("down_proj", Stack(down, (count, i, hidden), outs, transposed=True), hidden, i),
    )
    return mixture(
        prefix,
        hidden,
        routing,
        parts,
        router="router",
        router_bias=Part(f"{prefix}.router.bias", (count,)),
        biases=(
            bias("gate_proj", name, gates, i),
            bias("up_proj", name, ups, i),
            bias("down_proj", down, outs, hidden),
        ),
        activation=Activation.clamped_swiglu,
        alpha=config.number("swiglu_alpha", 1.702),
        limit=config.number("swiglu_limit", 7.0),
    )
