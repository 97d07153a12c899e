"""Online quantization: 16-bit weights are quantized while a model is loaded, tensor by tensor.

Scales are chosen by error: of several candidates for a group's range, the codes with the least
squared error win, each with the scale that suits its codes best (x . l / l . l for levels l). Head,
embeddings and routers stay as they are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from galley.kernels.quantized import QuantizedWeight
from galley.kernels.weight_format import E4M3_VALUES

Values = NDArray[np.float32]
#: x / scale → (codes, levels) of the same shape.
Encode = Callable[[Values], tuple[NDArray[np.uint8], Values]]

#: Matrices that stay as they are.
_KEPT = re.compile(r"embed|lm_head|wte|wpe|(^|\.)(head|output_projection)$")
#: Largest level → candidates, as factors of the largest magnitude of a group.
_CLIPS = tuple(np.linspace(1.0, 0.65, 8))
_FEW_CLIPS = (1.0, 0.95, 0.9, 0.8)
#: Values that are quantized at once: they stay in a core's cache.
_CHUNK = 2**18

#: Levels of NF4 (bitsandbytes: create_normal_map).
NF4 = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    np.float32,
)


def _int8(x: Values) -> tuple[NDArray[np.uint8], Values]:
    levels = np.clip(np.rint(x), -127, 127)
    return (levels + 128).astype(np.uint8), levels


def _int4(x: Values) -> tuple[NDArray[np.uint8], Values]:
    levels = np.clip(np.rint(x), -8, 7)
    return (levels + 8).astype(np.uint8), levels


def _e4m3(x: Values) -> tuple[NDArray[np.uint8], Values]:
    numbers = np.clip(x, -448, 448).astype(ml_dtypes.float8_e4m3fn)
    return numbers.view(np.uint8), numbers.astype(np.float32)


_BORDERS = (NF4[1:] + NF4[:-1]) / 2


def _nf4(x: Values) -> tuple[NDArray[np.uint8], Values]:
    codes = np.searchsorted(_BORDERS, x).astype(np.uint8)
    return codes, NF4[codes]


def search(
    x: Values, top: float, encode: Encode, clips: tuple[float, ...]
) -> tuple[NDArray[np.uint8], Values]:
    """Codes like x [groups, values], and the scale of each group."""
    largest = np.abs(x).max(axis=1)
    codes, scales = np.zeros(x.shape, np.uint8), np.zeros(len(x), np.float32)
    gain = np.full(len(x), -1.0, np.float32)
    for clip in clips:
        step = largest * np.float32(clip / top)
        step = np.where(step > 0, step, np.float32(1)).astype(np.float32)
        some, levels = encode(x / step[:, None])
        xl, ll = np.einsum("gn,gn->g", x, levels), np.einsum("gn,gn->g", levels, levels)
        # The error with the best scale is |x|^2 - xl^2 / ll.
        mine = np.divide(xl * xl, ll, out=np.zeros_like(xl), where=ll > 0)
        better = mine > gain
        codes[better] = some[better]
        scales[better] = np.divide(xl, ll, out=np.zeros_like(xl), where=ll > 0)[better]
        gain[better] = mine[better]
    return codes, scales


def search_range(
    x: Values, most: int, clips: tuple[float, ...] = _CLIPS
) -> tuple[NDArray[np.uint8], Values, Values]:
    """Codes 0 … most like x [groups, values], scale and minimum of each group."""
    n = x.shape[1]
    low, high = x.min(axis=1), x.max(axis=1)
    sum_x, sum_xx = x.sum(axis=1), np.einsum("gn,gn->g", x, x)
    codes = np.zeros(x.shape, np.uint8)
    scales, mins = np.zeros(len(x), np.float32), low.copy()
    error = np.full(len(x), np.inf, np.float32)
    for clip in clips:
        middle, half = (high + low) / 2, (high - low) / 2 * np.float32(clip)
        step = np.where(half > 0, 2 * half / most, 1)
        q = np.clip(np.rint((x - (middle - half)[:, None]) / step[:, None]), 0, most)
        sum_q, sum_qq = q.sum(axis=1), np.einsum("gn,gn->g", q, q)
        sum_xq = np.einsum("gn,gn->g", x, q)
        spread = n * sum_qq - sum_q * sum_q
        scale = np.divide(
            n * sum_xq - sum_x * sum_q, spread, out=np.zeros_like(spread), where=spread > 0
        )
        least = (sum_x - scale * sum_q) / n
        mine = sum_xx - scale * sum_xq - least * sum_x
        better = mine < error
        codes[better] = q[better].astype(np.uint8)
        scales[better], mins[better], error[better] = scale[better], least[better], mine[better]
    return codes, scales, mins


def in_parallel(
    x: Values, group: int, work: Callable[[Values], tuple[NDArray[Any], ...]]
) -> list[NDArray[Any]]:
    """`work` on the groups of x [N, K], in parts on all cores; results joined."""
    groups = x.reshape(-1, group or x.shape[1])
    rows = max(1, _CHUNK // groups.shape[1])
    parts = [groups[i : i + rows] for i in range(0, len(groups), rows)]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        done = list(pool.map(work, parts))
    return [np.concatenate(arrays) for arrays in zip(*done, strict=True)]


def int8_per_output(x: Values) -> QuantizedWeight:
    codes, scale = in_parallel(x, 0, lambda g: search(g, 127, _int8, _FEW_CLIPS))
    return QuantizedWeight(q=codes, bits=8, zero=128, scale=scale[:, None], activations="as_is")


def int4_in_groups(x: Values) -> QuantizedWeight:
    """Groups of 32 with a scale and a minimum."""
    codes, scale, least = in_parallel(x, 32, lambda g: search_range(g, 15))
    n = len(x)
    return QuantizedWeight(
        q=codes.reshape(x.shape),
        bits=4,
        group=32,
        scale=scale.reshape(n, -1).astype(np.float16),
        min=least.reshape(n, -1).astype(np.float16),
        activations="as_is",
    )


def search_int4(x: Values, group: int) -> tuple[NDArray[np.uint8], Values]:
    """Codes 0 … 15 of levels -8 … 7, like x [N, K], and the scales [N, K / group]."""
    codes, scale = in_parallel(x, group, lambda g: search(g, 7, _int4, _CLIPS))
    return codes.reshape(x.shape), scale.reshape(len(x), -1)


def nf4_in_blocks(x: Values) -> QuantizedWeight:
    """Blocks of 64, the levels of bitsandbytes."""
    codes, scale = in_parallel(x, 64, lambda g: search(g, 1, _nf4, _CLIPS))
    return QuantizedWeight(
        q=codes.reshape(x.shape),
        bits=4,
        group=64,
        scale=scale.reshape(len(x), -1).astype(np.float16),
        table=NF4,
        activations="as_is",
    )


def fp8_per_output(x: Values) -> QuantizedWeight:
    codes, scale = in_parallel(x, 0, lambda g: search(g, 448, _e4m3, _FEW_CLIPS))
    return _fp8(codes, scale[:, None])


def fp8_per_tensor(x: Values) -> QuantizedWeight:
    """One scale: a group of all values cannot be cut into parts."""
    codes, scale = search(x.reshape(1, -1), 448, _e4m3, _FEW_CLIPS)
    return _fp8(codes.reshape(x.shape), np.repeat(scale, len(x))[:, None])


def _fp8(codes: NDArray[np.uint8], scale: Values) -> QuantizedWeight:
    return QuantizedWeight(q=codes, bits=8, scale=scale, table=E4M3_VALUES, activations="as_is")


class Online:
    """One way to quantize.

    Attributes:
        quantize: float32 [N, K] → codes and scales.
        group: values along K that share a scale; others stay as they are.
        experts_only: matrices of experts alone.
    """

    def __init__(
        self,
        quantize: Callable[[Values], QuantizedWeight],
        group: int = 1,
        experts_only: bool = False,
    ) -> None:
        self._quantize, self._group, self._experts_only = quantize, group, experts_only

    def wants(self, name: str, inputs: int, is_expert: bool) -> bool:
        """Whether the matrix of layer `name` is quantized."""
        if self._experts_only and not is_expert:
            return False
        return inputs % self._group == 0 and not _KEPT.search(name)

    def __call__(self, name: str, weight: QuantizedWeight, is_expert: bool) -> QuantizedWeight:
        """The weight of layer `name`, quantized if it is to be."""
        if weight.dense is None or not self.wants(name, weight.shape[1], is_expert):
            return weight
        return self._quantize(np.ascontiguousarray(weight.dense, np.float32))


#: --quantization → what it does with a 16-bit checkpoint; the names of `config.registries.ONLINE`.
METHODS: Mapping[str, Online] = {
    "bitsandbytes": Online(nf4_in_blocks, 64),
    "experts_int8": Online(int8_per_output, experts_only=True),
    "fp8": Online(fp8_per_output),
    "fp8_per_channel": Online(fp8_per_output),
    "fp8_per_tensor": Online(fp8_per_tensor),
    "int4": Online(int4_in_groups, 32),
    "int8": Online(int8_per_output),
    "int8_per_channel_weight_only": Online(int8_per_output),
}
