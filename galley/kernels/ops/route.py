"""The experts that each token chooses, and their weights."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from galley.kernels.ops.definition import NativeOp, Op, output, whole
from galley.kernels.program import TOKENS, Node, Symbol
from galley.kernels.values import Constant, Value

if TYPE_CHECKING:
    from torch import Tensor

    from galley.kernels.recorder import Recorder
    from galley.kernels.reference import ReferenceOps


class Score(IntEnum):
    """How logits become the scores of experts (csrc/experts.cpp)."""

    softmax = 0
    sigmoid = 1
    #: The best logits are chosen; their softmax is the weights.
    softmax_of_chosen = 2
    #: Of Phi-3.5-MoE: the weight of each choice is its softmax over those not chosen before whose
    #: logits are near it.
    softmax_of_near = 3


class Routing(msgspec.Struct, frozen=True):
    """How a token chooses experts.

    Attributes:
        experts, top_k: how many there are, and how many each token chooses.
        score: of an expert; its weight, if it is chosen.
        renormalise: the weights of a token's experts are divided by their sum.
        scale: factor of the weights, at last.
        groups, top_groups: experts form groups of equal size, of which the best few can be chosen.
        group_top: the score of a group is the sum of so many of its best experts' scores.
        near: largest difference of near logits, as a part of the larger magnitude.
    """

    experts: int
    top_k: int
    score: Score = Score.softmax
    renormalise: bool = False
    scale: float = 1.0
    groups: int = 1
    top_groups: int = 1
    group_top: int = 1
    near: float = 0.0


def _arguments(node: Node) -> dict[str, int]:
    whole(output(node))
    return {"experts": whole(node.reads["logits"]).columns}


class Route(Op):
    name = "route"
    native = NativeOp(
        "route",
        pointers={
            "logits": "f32 [tokens][experts]",
            "bias?": "f32 [experts], added for the choice alone",
            "scales?": "f32 [experts], factors of the weights",
            "out": "f32 [tokens][2 top_k]: weights, then ids",
        },
        ints={
            "experts": "",
            "top_k": "",
            "score": "0 softmax, 1 sigmoid, 2 softmax over the chosen ones, 3 over near ones",
            "renormalise?": "weights sum to 1",
            "groups?": "default 1",
            "top_groups?": "default 1",
            "group_top?": "default 1: best experts of a group whose scores make the group's",
        },
        floats={
            "scale?": "of the weights, default 1",
            "near?": "largest difference of near logits, as a part of the larger magnitude",
        },
        arguments=_arguments,
        rows={"logits": TOKENS, "out": TOKENS},
    )

    def __call__(
        self,
        logits: Value,
        routing: Routing,
        bias: Constant | None = None,
        scales: Constant | None = None,
    ) -> Value:
        """[T, 2 k] float32: the weights of each token's experts, then their ids, best first.

        Args:
            bias: [experts], added to the scores for the choice, not in the weights.
            scales: [experts], factors of the weights.
        """
        self.require_columns(logits, routing.experts)
        return self.run(logits, routing, bias, scales)

    def reference(
        self,
        ref: ReferenceOps,
        logits: Tensor,
        routing: Routing,
        bias: Tensor | None,
        scales: Tensor | None,
    ) -> Tensor:
        import torch

        scores = logits.float()
        if routing.score == Score.softmax:
            scores = scores.softmax(-1)
        elif routing.score == Score.sigmoid:
            scores = scores.sigmoid()
        choice = scores if bias is None else scores + bias
        if routing.top_groups < routing.groups:
            grouped = choice.unflatten(-1, (routing.groups, -1))
            best = grouped.topk(routing.group_top, dim=-1).values.sum(-1)
            closed = torch.ones_like(best, dtype=torch.bool)
            closed.scatter_(-1, best.topk(routing.top_groups, dim=-1).indices, False)
            choice = grouped.masked_fill(closed[..., None], float("-inf")).flatten(-2)
        ids = choice.topk(routing.top_k, dim=-1).indices
        weights = scores.gather(-1, ids)
        if routing.score == Score.softmax_of_chosen:
            weights = weights.softmax(-1)
        elif routing.score == Score.softmax_of_near:
            weights = _weights_among_near(scores, ids, routing.near)
        if routing.renormalise and routing.score != Score.softmax_of_chosen:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        weights = weights * routing.scale
        if scales is not None:
            weights = weights * scales[ids]
        return torch.cat([weights, ids.float()], dim=-1)

    def record(
        self,
        recorder: Recorder,
        logits: Symbol,
        routing: Routing,
        bias: NDArray[np.float32] | None,
        scales: NDArray[np.float32] | None,
    ) -> Symbol:
        out = Symbol.new(TOKENS, 2 * routing.top_k)
        ints = {
            "top_k": routing.top_k,
            "score": int(routing.score),
            "renormalise": int(routing.renormalise),
            "groups": routing.groups,
            "top_groups": routing.top_groups,
            "group_top": routing.group_top,
        }
        constants = {"bias": bias, "scales": scales}
        recorder.add(
            Node(
                "route",
                {"logits": logits},
                {"out": out},
                constants={k: c for k, c in constants.items() if c is not None},
                ints=ints,
                floats={"scale": routing.scale, "near": routing.near},
            )
        )
        return out


def _weights_among_near(logits: Tensor, ids: Tensor, near: float) -> Tensor:
    """The weights of Phi-3.5-MoE's choices (`Score.softmax_of_near`)."""
    import torch

    rest, weights = logits, []
    for chosen in ids.split(1, dim=-1):
        best = rest.gather(-1, chosen)
        far = (best - rest) / torch.maximum(logits.abs(), best) > near
        weights.append(rest.masked_fill(far, float("-inf")).softmax(-1).gather(-1, chosen))
        rest = rest.scatter(-1, chosen, float("-inf"))
    return torch.cat(weights, dim=-1)


route: Route = Route()
