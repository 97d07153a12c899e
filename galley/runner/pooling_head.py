"""Heads of models that pool, computed in float32 on the rows of one request at a time.

So a result does not depend on what else is in the batch: a product's shape is the request's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import msgspec
import numpy as np
from numpy.typing import NDArray

from galley.errors import ModelError
from galley.kernels.adapters import AdapterSite, PackedAdapter
from galley.loader import Checkpoint
from galley.loader.safetensors import open_folder
from galley.loader.tensor import RawTensor
from galley.models.pooling_heads import DenseSpec, HeadSpec, NormSpec
from galley.quant import to_float32

F32 = NDArray[np.float32]
_erf = np.frompyfunc(math.erf, 1, 1)


def _gelu(x: F32) -> F32:
    inner = np.asarray(_erf(x.astype(np.float64) / math.sqrt(2)), np.float64)
    return np.asarray(0.5 * x * (1 + inner), np.float32)


def _gelu_tanh(x: F32) -> F32:
    inner = np.tanh(math.sqrt(2 / math.pi) * (x + np.float32(0.044715) * x * x * x))
    return np.asarray(np.float32(0.5) * x * (1 + inner), np.float32)


def _sigmoid(x: F32) -> F32:
    half = np.float32(0.5)
    return np.asarray(half * (1 + np.tanh(half * x)), np.float32)


def _softmax(x: F32) -> F32:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True), np.float32)


FUNCTIONS: dict[str | None, Callable[[F32], F32]] = {
    None: lambda x: x,
    "identity": lambda x: x,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": lambda x: np.maximum(x, np.float32(0)),
    "sigmoid": _sigmoid,
    "silu": lambda x: x * _sigmoid(x),
    "softmax": _softmax,
    "tanh": np.tanh,
}


class _Dense(msgspec.Struct, frozen=True, eq=False):
    """weight [inputs, outputs]; `site`: what an adapter may have of it."""

    weight: F32
    bias: F32 | None
    function: str | None
    site: AdapterSite | None

    def __call__(self, x: F32, adapter: PackedAdapter | None) -> F32:
        own = None
        if adapter is not None and self.site is not None:
            own = adapter.copy(self.site.copy)
        y = x @ (self.weight if own is None else own.T)
        if self.bias is not None:
            y += self.bias
        if adapter is not None and self.site is not None:
            y = _adapted(x, y, adapter, self.site)
        return FUNCTIONS[self.function](y)


def _adapted(x: F32, y: F32, adapter: PackedAdapter, site: AdapterSite) -> F32:
    """gain * y + scale * B (A x) + shift"""
    affine = adapter.gains_and_shifts(site.first_output)
    if affine is not None:
        y = y * affine[0] + affine[1]
    if adapter.ranks[site.first_input]:
        low = x @ adapter.matrix_a(site.first_input).astype(np.float32).T
        low *= adapter.scales[site.first_input]
        y = np.asarray(y + low @ adapter.matrix_b(site.first_output).T, np.float32)
    return y


class _Norm(msgspec.Struct, frozen=True, eq=False):
    weight: F32
    bias: F32 | None
    eps: float

    def __call__(self, x: F32, adapter: PackedAdapter | None) -> F32:
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = np.square(centred).mean(axis=-1, keepdims=True)
        y = centred / np.sqrt(variance + np.float32(self.eps)) * self.weight
        return np.asarray(y if self.bias is None else y + self.bias, np.float32)


class Head:
    """A `HeadSpec` with its weights.

    Attributes:
        activation: makes probabilities of labels' numbers; None = the head makes vectors.
        is_vocabulary: its numbers are words' weights.
    """

    def __init__(self, spec: HeadSpec, modules: Sequence[_Dense | _Norm]) -> None:
        self._modules = modules
        self.activation = spec.activation
        self.is_vocabulary = spec.is_vocabulary

    def __call__(self, rows: F32, adapter: PackedAdapter | None) -> F32:
        """rows [n, H] → [n, columns], with what the request's adapter does."""
        for module in self._modules:
            rows = module(rows, adapter)
        return rows

    def activated(self, rows: F32) -> F32:
        """Numbers of labels [n, labels] as probabilities."""
        return FUNCTIONS[self.activation](rows)


def load_head(spec: HeadSpec, checkpoint: Checkpoint, sites: Mapping[str, AdapterSite]) -> Head:
    """The head's weights, read from the checkpoint. Raises ModelError naming a tensor.

    Args:
        sites: of its layers, by name.
    """
    names = set(checkpoint.names())

    @cache
    def folder(path: str) -> Callable[[str], RawTensor]:
        return open_folder(checkpoint.model_info.source, path)

    def read(where: str, name: str, shape: tuple[int, ...]) -> F32:
        if not where and name not in names:
            raise ModelError(f"the checkpoint has no tensor {name}, of shape {list(shape)}")
        raw = folder(where)(name) if where else checkpoint.tensor(name)
        if tuple(raw.shape) != shape:
            raise ModelError(
                f"tensor {name} has shape {list(raw.shape)}; the config asks for {list(shape)}"
            )
        return to_float32(raw)

    def dense(spec: DenseSpec) -> _Dense:
        name = spec.weight_name or f"{spec.name}.weight"
        if spec.token_ids:
            rows = to_float32(checkpoint.tensor(name if name in names else _EMBEDDING))
            weight = rows[list(spec.token_ids)]
            weight = weight[1:] - weight[:1] if spec.difference else weight
        else:
            weight = read(spec.folder, name, (spec.outputs, spec.inputs))
        bias = read(spec.folder, f"{spec.name}.bias", (spec.outputs,)) if spec.bias else None
        site = sites.get(spec.name)
        return _Dense(np.ascontiguousarray(weight.T), bias, spec.function, site)

    def norm(spec: NormSpec) -> _Norm:
        weight = read("", f"{spec.name}.weight", (spec.size,))
        bias = read("", f"{spec.name}.bias", (spec.size,)) if spec.bias else None
        return _Norm(weight, bias, spec.eps)

    modules = [dense(m) if isinstance(m, DenseSpec) else norm(m) for m in spec.modules]
    return Head(spec, modules)


_EMBEDDING = "model.embed_tokens.weight"
