"""Every operation that a model may use: the only interface to the kernels.

`Ops` checks arguments and runs each op on a backend. A *value* is whatever the backend computes
with: a torch tensor where `reference.py` computes at once, a symbol while `recorder.py` records a
program. A model is written once against this interface; it gets the `Ops` and a `ForwardContext`
as arguments and knows nothing of batches, caches, devices or number formats.

The file of an op is imported when the op is first used.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from typing import TYPE_CHECKING

from galley.kernels.ops.definition import NativeOp, Op, OpBackend
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

    if TYPE_CHECKING:
        from galley.kernels.ops.adapt import adapt
        from galley.kernels.ops.adapt_embedding import adapt_embedding
        from galley.kernels.ops.adapt_head import adapt_head
        from galley.kernels.ops.adapted_experts import adapted_experts
        from galley.kernels.ops.add import add
        from galley.kernels.ops.attention import attention
        from galley.kernels.ops.causal_conv import causal_conv
        from galley.kernels.ops.concat import concat
        from galley.kernels.ops.disentangled_attention import disentangled_attention
        from galley.kernels.ops.elementwise import elementwise
        from galley.kernels.ops.embedding import embedding
        from galley.kernels.ops.experts import experts
        from galley.kernels.ops.gate import gate
        from galley.kernels.ops.gate_rows import gate_rows
        from galley.kernels.ops.gated_delta_rule import gated_delta_rule
        from galley.kernels.ops.gated_norm import gated_norm
        from galley.kernels.ops.gelu_and_mul import gelu_and_mul
        from galley.kernels.ops.given_rows import given_rows
        from galley.kernels.ops.head_linear import head_linear
        from galley.kernels.ops.head_norm import head_norm
        from galley.kernels.ops.latent_attention import latent_attention
        from galley.kernels.ops.layer_norm import layer_norm
        from galley.kernels.ops.linear import linear
        from galley.kernels.ops.match_size import match_size
        from galley.kernels.ops.mix import mix
        from galley.kernels.ops.prompt_rows import prompt_rows
        from galley.kernels.ops.rms_norm import rms_norm
        from galley.kernels.ops.rope import rope
        from galley.kernels.ops.route import route
        from galley.kernels.ops.scale import scale
        from galley.kernels.ops.select_rows import select_rows
        from galley.kernels.ops.selective_scan import selective_scan
        from galley.kernels.ops.shift import shift
        from galley.kernels.ops.silu_and_mul import silu_and_mul
        from galley.kernels.ops.soft_cap import soft_cap
        from galley.kernels.ops.sparsify import sparsify
        from galley.kernels.ops.split import split
        from galley.kernels.ops.ssd_scan import ssd_scan
        from galley.kernels.ops.token_window import token_window
        from galley.kernels.ops.wkv7 import wkv7
        from galley.kernels.ops.write_kv import write_kv
        from galley.kernels.ops.write_latent import write_latent

    else:  # mypy takes every attribute for one that exists where it sees this method

        def __getattr__(self, name: str) -> Op:
            """Import the op `name`, which becomes an attribute of the class."""
            found = _ops_of(name).get(name)
            if found is None:
                raise AttributeError(f"there is no op {name!r}", name=name, obj=self)
            setattr(Ops, name, found)
            return getattr(self, name)

    def __init__(
        self,
        backend: OpBackend,
        group: RankGroup | None = None,
        adapted: bool = False,
        prompt_rows: bool = False,
    ) -> None:
        """
        Args:
            adapted: linear layers add what the adapters of the step's rows do (`adapt`).
            prompt_rows: prompts may bring embedding rows (`PromptRows`).
        """
        self.backend = backend
        self.adapted = adapted
        self.takes_prompt_rows = prompt_rows
        self.group: RankGroup = group or SingleRank()

    def all_reduce(self, x: Value) -> Value:
        """The sum over the group's ranks; x itself in a group of one."""
        return self.group.all_reduce(x)


#: Native ops whose file is not named after them.
_FILES = {
    **dict.fromkeys(("expert_rows", "expert_up", "expert_down"), "experts"),
    **dict.fromkeys(("adapter_shrink", "adapter_expand"), "adapt"),
    "adapted_linear": "linear",
    **dict.fromkeys(("expert_adapter_shrink", "expert_adapter_expand"), "adapted_experts"),
}


@functools.cache
def native_op(name: str) -> NativeOp | None:
    """The native op `name`; None if there is none."""
    return _native_ops_of(_FILES.get(name, name)).get(name)


def all_ops() -> dict[str, Op]:
    """Every op by name. Imports all files."""
    return {name: op for file in _files() for name, op in _ops_of(file).items()}


def all_native_ops() -> dict[str, NativeOp]:
    """Every native op by name. Imports all files."""
    return {name: op for file in _files() for name, op in _native_ops_of(file).items()}


def _files() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(__path__)]


def _ops_of(file: str) -> dict[str, Op]:
    """The ops that a file of this package defines; none if there is no such file."""
    return {name: op for name, op in _contents(file).items() if isinstance(op, Op)}


def _native_ops_of(file: str) -> dict[str, NativeOp]:
    natives = (op.native if isinstance(op, Op) else op for op in _contents(file).values())
    return {native.name: native for native in natives if isinstance(native, NativeOp)}


def _contents(file: str) -> dict[str, object]:
    module = f"{__name__}.{file}"
    try:
        return vars(importlib.import_module(module))
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        return {}


__all__ = [
    "CacheLayer",
    "Constant",
    "ForwardContext",
    "KVLayer",
    "LatentLayer",
    "NativeOp",
    "Op",
    "OpBackend",
    "Ops",
    "RankGroup",
    "RotaryTable",
    "SingleRank",
    "StateLayer",
    "Value",
    "Weight",
    "all_native_ops",
    "all_ops",
    "native_op",
]
