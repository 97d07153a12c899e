"""`Scheme`: how one quantization method stores the matrices of a model in a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from galley.kernels.quantized import QuantizedWeight
from galley.quant.registry import read_weight

if TYPE_CHECKING:
    from galley.loader.tensor import RawTensor


class Tensors(Protocol):
    """The tensors of a checkpoint by Hugging Face name."""

    def has(self, name: str) -> bool: ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor that there is; it is not marked as used."""

    def use(self, name: str, shape: tuple[int, ...]) -> RawTensor:
        """The tensor, which is marked as used. Raises ModelError if there is none of that name
        and shape."""


class Scheme(Protocol):
    """One object per checkpoint. A method is one file with a function that makes it of the
    checkpoint's `quantization_config`, and one line in `schemes.METHODS`."""

    def read(self, name: str, shape: tuple[int, int], tensors: Tensors) -> QuantizedWeight:
        """The matrix [N, K] of layer `name`, e.g. "model.layers.0.self_attn.q_proj", from all
        tensors that belong to it. Raises ModelError if one is missing or cannot be read."""


@runtime_checkable
class ExpertScheme(Scheme, Protocol):
    """A `Scheme` of checkpoints that may hold the codes of all experts in one tensor."""

    def has_experts(self, name: str, tensors: Tensors) -> bool:
        """Whether the tensor that a dense checkpoint calls `name` is stored as codes."""

    def read_expert(
        self, name: str, shape: tuple[int, int, int], index: int, tensors: Tensors
    ) -> QuantizedWeight:
        """The matrix [N, K] of one expert, of `shape` [experts, N, K]. Raises as `read`."""


class PlainScheme:
    """One tensor per matrix, `name.weight`, whose format is its dtype: dense weights and GGUF."""

    def read(self, name: str, shape: tuple[int, int], tensors: Tensors) -> QuantizedWeight:
        return read_weight(tensors.use(f"{name}.weight", shape))
