"""Tensors by name, as schemes ask for them."""

from __future__ import annotations

from galley.errors import ModelError
from galley.loader import RawTensor


class TensorDict:
    """`galley.quant.Tensors` of a few tensors; `used` are the names that were asked for."""

    def __init__(self, *tensors: RawTensor) -> None:
        self._tensors = {tensor.name: tensor for tensor in tensors}
        self.used: set[str] = set()

    def has(self, name: str) -> bool:
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def use(self, name: str, shape: tuple[int, ...]) -> RawTensor:
        tensor = self._tensors.get(name)
        if tensor is None or tensor.shape != shape:
            raise ModelError(f"no tensor {name} of shape {shape}")
        self.used.add(name)
        return tensor
