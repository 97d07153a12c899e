"""Column ranges of a value."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from galley.kernels.ops.definition import Op
from galley.kernels.program import Symbol
from galley.kernels.values import Value

if TYPE_CHECKING:
    from torch import Tensor

    from galley.kernels.recorder import Recorder
    from galley.kernels.reference import ReferenceOps


class Split(Op):
    name = "split"

    def __call__(self, x: Value, sizes: Sequence[int]) -> Sequence[Value]:
        """Column ranges of x, of the given sizes, from left to right. Views, not copies."""
        self.require_columns(x, sum(sizes))
        parts: Sequence[Value] = self.run(x, sizes)
        return parts

    def reference(self, ref: ReferenceOps, x: Tensor, sizes: Sequence[int]) -> Sequence[Tensor]:
        return x.split(list(sizes), dim=-1)

    def record(self, recorder: Recorder, x: Symbol, sizes: Sequence[int]) -> list[Symbol]:
        starts = accumulate([x.start, *sizes[:-1]])
        return [Symbol(x.buffer, n, start) for n, start in zip(sizes, starts, strict=True)]


split: Split = Split()
