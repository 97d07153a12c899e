"""Embedding rows that prompts bring, in place of those of their token ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

from galley.kernels.ops.definition import NativeOp, Op, output, whole
from galley.kernels.program import TOKENS, Node, Symbol
from galley.kernels.values import Value

if TYPE_CHECKING:
    from torch import Tensor

    from galley.kernels.recorder import Recorder
    from galley.kernels.reference import ReferenceOps


def _arguments(node: Node) -> dict[str, int]:
    return {"n": whole(output(node)).columns}


class PromptRows(Op):
    name = "prompt_rows"
    native = NativeOp(
        "prompt_rows",
        pointers={"out": "f32: the embedding, or the prompt's own rows"},
        ints={"n": "columns"},
        columns=("prompt_rows", "prompt_row"),
        arguments=_arguments,
        rows={"out": TOKENS},
    )

    def __call__(self, y: Value) -> Value:
        """[T, N]: y with the rows of the slot's prompt at the positions that have one (columns
        `prompt_rows`, `prompt_row`). y may be overwritten."""
        return self.run(y)

    def reference(self, ref: ReferenceOps, y: Tensor) -> Tensor:
        raise NotImplementedError("the reference is given no rows")

    def record(self, recorder: Recorder, y: Symbol) -> Symbol:
        recorder.add(Node("prompt_rows", updates={"out": y}))
        return Symbol(y.buffer, y.columns, y.start)


prompt_rows: PromptRows = PromptRows()
