"""Activation function of each number by itself, as ungated feed-forward blocks have it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from galley.kernels.ops.definition import WHOLE_ROWS, NativeOp, Op, output, whole
from galley.kernels.program import Constant as NodeConstant
from galley.kernels.program import Dim, Node, Symbol
from galley.kernels.values import Constant, Value

if TYPE_CHECKING:
    from torch import Tensor

    from galley.kernels.recorder import Recorder
    from galley.kernels.reference import ReferenceOps

#: gelu: with erf; gelu_tanh: its tanh form; relu2: the square of relu; xielu: as in Apertus, with
#: learned parameters; clip: to [-limit, limit]. In the order of csrc/elementwise_kernel.h.
Function = Literal["gelu", "gelu_tanh", "relu", "relu2", "silu", "xielu", "sigmoid", "tanh", "clip"]
FUNCTIONS: tuple[Function, ...] = get_args(Function)
#: The first so many may be the epilogue of a linear layer.
PLAIN_FUNCTIONS = FUNCTIONS.index("xielu")


def _arguments(node: Node) -> dict[str, int | Dim]:
    out = whole(output(node))
    whole(node.reads["x"])
    return {"n": out.columns, "rows": out.buffer.rows, "out_kind": int(out.kind)}


class Elementwise(Op):
    name = "elementwise"
    native = NativeOp(
        "elementwise",
        pointers={"x": "f32", "out": "", "parameters?": "f32 [4], of xielu"},
        ints={
            "n": "",
            "rows?": "dimension, default tokens",
            "out_kind": "",
            "function?": ", ".join(f"{i} {name}" for i, name in enumerate(FUNCTIONS)),
        },
        floats={"limit?": "of clip"},
        arguments=_arguments,
        stores=WHOLE_ROWS,
    )

    def __call__(
        self,
        x: Value,
        function: Function,
        parameters: Constant | None = None,
        limit: float = 0.0,
    ) -> Value:
        """Like x: the function of each number. `parameters` of xielu: [4], alpha_p and alpha_n
        before softplus, beta, eps. `limit` of clip: above 0."""
        self.require(function in FUNCTIONS, f"no function {function!r}")
        shape = None if parameters is None else tuple(parameters.shape)
        wanted = (4,) if function == "xielu" else None
        self.require(shape == wanted, f"parameters of shape {shape} for {function}")
        self.require((limit > 0) == (function == "clip"), f"limit {limit} for {function}")
        return self.run(x, function, parameters, limit)

    def reference(
        self,
        ref: ReferenceOps,
        x: Tensor,
        function: Function,
        parameters: Tensor | None,
        limit: float,
    ) -> Tensor:
        import torch.nn.functional as F

        match function:
            case "gelu":
                return F.gelu(x)
            case "gelu_tanh":
                return F.gelu(x, approximate="tanh")
            case "relu":
                return F.relu(x)
            case "relu2":
                return F.relu(x).square()
            case "silu":
                return F.silu(x)
            case "xielu":
                assert parameters is not None
                return _xielu(x, parameters)
            case "sigmoid":
                return x.sigmoid()
            case "tanh":
                return x.tanh()
            case "clip":
                return x.clamp(-limit, limit)

    def record(
        self,
        recorder: Recorder,
        x: Symbol,
        function: Function,
        parameters: NDArray[np.float32] | None,
        limit: float,
    ) -> Symbol:
        out = Symbol.new(x.buffer.rows, x.columns)
        constants: dict[str, NodeConstant] = {}
        if parameters is not None:
            constants["parameters"] = parameters
        ints = {"function": FUNCTIONS.index(function)}
        floats = {"limit": limit} if function == "clip" else {}
        recorder.add(
            Node(
                "elementwise", {"x": x}, {"out": out}, constants=constants, ints=ints, floats=floats
            )
        )
        return out


def _xielu(x: Tensor, parameters: Tensor) -> Tensor:
    import torch
    import torch.nn.functional as F

    alpha_p, alpha_n, beta, eps = parameters
    positive, negative = F.softplus(alpha_p), beta + F.softplus(alpha_n)
    below = (torch.expm1(torch.minimum(x, eps)) - x) * negative
    return torch.where(x > 0, positive * x * x, below) + beta * x


elementwise: Elementwise = Elementwise()
