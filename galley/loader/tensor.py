"""The interface of a checkpoint: what it declares, and its tensors by name.

Knows no file format, no model and no kernel.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import ml_dtypes
import msgspec
import numpy as np

from galley.config import ModelInfo

#: RawTensor's dtype → numpy's, of the dense formats that models are trained in.
DENSE_DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


class TensorHeader(NamedTuple):
    """Shape and dtype of a tensor, as in `RawTensor`."""

    shape: tuple[int, ...]
    dtype: str


class RawTensor(msgspec.Struct, frozen=True, eq=False):
    """One tensor as the file holds it: mapped, neither copied nor converted.

    Attributes:
        name: Hugging Face name, e.g. "model.layers.0.self_attn.q_proj.weight".
        shape: logical shape, outermost first: (out, in) for a weight, (n,) for a vector.
        dtype: "float32", "float16", "bfloat16", "int8" … or a GGUF block type, "Q4_1" ….
        data: dense dtypes: array of `shape` (bfloat16 and float8 by ml_dtypes); block types:
            uint8, shape[:-1] + (bytes per row,), as for float4_e2m1fn. Read-only.
        row_order: int64 [shape[0]]: logical row r is ``data[row_order[r]]``; None: as they are.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    data: np.ndarray
    row_order: np.ndarray | None = None


class Checkpoint(Protocol):
    """An opened checkpoint; one class per file format."""

    model_info: ModelInfo

    def names(self) -> list[str]:
        """Hugging Face names of all tensors, whatever the format."""
        ...

    def header(self, name: str) -> TensorHeader:
        """The tensor without its data. Raises ModelError if there is none."""
        ...

    def tensor(self, name: str) -> RawTensor:
        """The tensor of that name. Raises ModelError if there is none."""
        ...
