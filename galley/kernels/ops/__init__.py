"""Every operation that a model may use: the only interface to the kernels.

`Ops` checks arguments and runs each op on a backend. A *value* is whatever the backend computes
with: a torch tensor where `reference.py` computes at once, a symbol while `recorder.py` records a
program. A model is written once against this interface; it gets the `Ops` and a `ForwardContext`
as arguments and knows nothing of batches, caches, devices or number formats.
"""

from __future__ import annotations

from galley.kernels.ops.definition import NativeOp, Op, OpBackend
from galley.kernels.ops.experts import (
    EXPERT_DOWN,
    EXPERT_ROWS,
    EXPERT_UP,
    Activation,
    ExpertWeights,
)
from galley.kernels.ops.gated_activation import GATE_UP_RUN
from galley.kernels.ops.probe import PROBE
from galley.kernels.ops.quantize import QUANTIZE
from galley.kernels.ops.rope_kv import ROPE_KV
from galley.kernels.ops.route import Routing, Score
from galley.kernels.ops.sample import SAMPLE
from galley.kernels.values import (
    CacheLayer,
    Constant,
    ForwardContext,
    KVLayer,
    LatentLayer,
    RankGroup,
    RotaryTable,
    SingleRank,
    StateLayer,
    Value,
    Weight,
)


class Ops:
    """The ops. A wrong shape raises ValueError when the model is first run or recorded."""

    from galley.kernels.ops.add import add
    from galley.kernels.ops.attention import attention
    from galley.kernels.ops.causal_conv import causal_conv
    from galley.kernels.ops.elementwise import elementwise
    from galley.kernels.ops.embedding import embedding
    from galley.kernels.ops.experts import experts
    from galley.kernels.ops.gate import gate
    from galley.kernels.ops.gate_rows import gate_rows
    from galley.kernels.ops.gated_delta_rule import gated_delta_rule
    from galley.kernels.ops.gated_norm import gated_norm
    from galley.kernels.ops.gelu_and_mul import gelu_and_mul
    from galley.kernels.ops.head_linear import head_linear
    from galley.kernels.ops.head_norm import head_norm
    from galley.kernels.ops.latent_attention import latent_attention
    from galley.kernels.ops.layer_norm import layer_norm
    from galley.kernels.ops.linear import linear
    from galley.kernels.ops.rms_norm import rms_norm
    from galley.kernels.ops.rope import rope
    from galley.kernels.ops.route import route
    from galley.kernels.ops.scale import scale
    from galley.kernels.ops.select_rows import select_rows
    from galley.kernels.ops.selective_scan import selective_scan
    from galley.kernels.ops.silu_and_mul import silu_and_mul
    from galley.kernels.ops.soft_cap import soft_cap
    from galley.kernels.ops.split import split
    from galley.kernels.ops.ssd_scan import ssd_scan
    from galley.kernels.ops.wkv7 import wkv7
    from galley.kernels.ops.write_kv import write_kv
    from galley.kernels.ops.write_latent import write_latent

    def __init__(self, backend: OpBackend, group: RankGroup | None = None) -> None:
        self.backend = backend
        self.group: RankGroup = group or SingleRank()

    def all_reduce(self, x: Value) -> Value:
        """The sum over the group's ranks; x itself in a group of one."""
        return self.group.all_reduce(x)


#: Native ops that no method of `Ops` has alone.
_OTHER = (QUANTIZE, ROPE_KV, SAMPLE, PROBE, EXPERT_ROWS, EXPERT_UP, EXPERT_DOWN)
#: Ops by name, and the native ops that programs are made of.
OPS: dict[str, Op] = {name: op for name, op in vars(Ops).items() if isinstance(op, Op)}
NATIVE_OPS: dict[str, NativeOp] = {
    native.name: native
    for native in (*(op.native for op in OPS.values()), *_OTHER)
    if native is not None
}

__all__ = [
    "GATE_UP_RUN",
    "NATIVE_OPS",
    "OPS",
    "Activation",
    "CacheLayer",
    "Constant",
    "ExpertWeights",
    "ForwardContext",
    "KVLayer",
    "LatentLayer",
    "NativeOp",
    "Op",
    "OpBackend",
    "Ops",
    "RankGroup",
    "RotaryTable",
    "Routing",
    "Score",
    "SingleRank",
    "StateLayer",
    "Value",
    "Weight",
]
