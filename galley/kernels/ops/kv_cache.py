"""Code shared by the ops that write and read the KV cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from galley.kernels.program import Kind
from galley.kernels.values import KVLayer, LatentLayer
from galley.kv.format import LARGEST, KVFormat

if TYPE_CHECKING:
    from torch import Tensor

    from galley.kernels.recorder import Recorder

KV_POINTER = {"kv": "this layer's base"}
#: Arguments that `cpu.KVMemory` and `kv_ints` give.
KV_INTS = {
    "kv_heads": "",
    "head_dim": "",
    "kv_kind": "f32, bf16, e4m3, e5m2, int8",
    "token_scales?": "1 = a scale for each token and head",
    "kv_block_stride": "bytes",
    "block_size": "tokens",
}
KV_FLOATS = {"k_scale?": "of the layer, default 1", "v_scale?": "likewise"}
KV_COLUMNS = ("block_table",)


def kv_ints(recorder: Recorder, layer: KVLayer | LatentLayer) -> dict[str, int]:
    """The integers that follow from the format of the layer's cache."""
    numbers = recorder.kv.of(layer.number)
    ints = {"kv_kind": numbers.number}
    return {**ints, "token_scales": 1} if numbers.token_scales else ints


def kv_floats(recorder: Recorder, layer: KVLayer | LatentLayer) -> dict[str, float]:
    """The scales of a layer, if the format of its cache has such."""
    numbers = recorder.kv.of(layer.number)
    if not numbers.is_codes or numbers.token_scales:
        return {}
    k_scale, v_scale = layer_scales(layer)
    floats = {"k_scale": k_scale, "v_scale": v_scale}
    return {name: scale for name, scale in floats.items() if scale != 1.0}


def query_kind(recorder: Recorder, layer: KVLayer | LatentLayer) -> Kind:
    """Of the queries that are multiplied with the layer's cache; codes are converted to bf16."""
    return Kind.f32 if recorder.kv.of(layer.number).name == "float32" else Kind.bf16


def layer_scales(layer: KVLayer | LatentLayer) -> tuple[float, float]:
    """Of K and of V, which are one in a latent cache."""
    if isinstance(layer, LatentLayer):
        return layer.k_scale, layer.k_scale
    return layer.k_scale, layer.v_scale


def stored(x: Tensor, numbers: KVFormat, scale: float) -> Tensor:
    """x [tokens, heads, head_dim] as the cache holds it: rounded, and converted back.

    Args:
        scale: of the layer; not used where tokens have their own.
    """
    import torch

    if numbers.name == "bfloat16":
        return x.to(torch.bfloat16).to(x.dtype)
    if not numbers.is_codes:
        return x
    top, values = LARGEST[numbers.name], x.float()
    if numbers.token_scales:
        largest = values.abs().amax(-1, keepdim=True)
        some = largest >= 1e-30
        zero = torch.zeros_like(largest)
        factor, back = (
            torch.where(some, top / largest, zero),
            torch.where(some, largest / top, zero),
        )
    else:
        one = torch.ones(1)
        factor, back = one / scale, one * scale
    codes = (values * factor).clamp(-top, top)
    if numbers.name == "int8":
        codes = codes.round()
    else:
        fp8 = torch.float8_e4m3fn if numbers.name == "fp8_e4m3" else torch.float8_e5m2
        codes = codes.to(fp8).float()
    return (codes * back).to(x.dtype)
