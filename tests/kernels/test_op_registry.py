"""The open set of ops: what `Ops` offers, and that the native arguments are as documented."""

from __future__ import annotations

import importlib
import subprocess
import sys

import numpy as np
import pytest

from galley.kernels import _native
from galley.kernels.ops import Ops, all_native_ops, all_ops
from galley.kernels.ops.add import add as add_op
from tests.kernels.native_harness import Native, aligned

OPS = all_ops()
NATIVE_OPS = all_native_ops()

#: Numbers that every op accepts: sizes and strides; flags and number formats are 0.
SIZES = {"n": 64, "k": 64, "heads": 2, "kv_heads": 2, "head_dim": 64, "rot_dim": 64, "vocab": 64}
STRIDES = {
    "x_stride",
    "like_stride",
    "q_stride",
    "k_stride",
    "v_stride",
    "out_stride",
    "kv_block_stride",
    "latent_stride",
    "rope_stride",
    "before_stride",
    "after_stride",
    "b_stride",
    "c_stride",
    "dt_stride",
    "gate_stride",
    "alpha_stride",
    "beta_stride",
    "r_stride",
    "w_stride",
    "first_stride",
    "mix_stride",
    "a_stride",
    "logits_stride",
}
NUMBERS = SIZES | dict.fromkeys(STRIDES, 1024) | {"size": 64, "window": 64, "what": 1, "causal": 1}
NUMBERS |= {"block_size": 64, "rows": ("tokens", 1), "channels": 64, "taps": 4, "groups": 2}
NUMBERS |= {"state_block_stride": 1 << 16, "state_per_block": 1, "state_width": 8, "state_size": 16}
NUMBERS |= {"units": 2, "unit_size": 64}
NUMBERS |= {"key_heads": 1, "keys": 64, "values": 64, "parts": 1, "ins": 1, "outs": 1}
NUMBERS |= {"experts": 2, "latent_dim": 32, "top_k": 1, "top_groups": 1, "group_top": 1}
NUMBERS |= {"width": 64, "all_inputs": 8, "all_outputs": 8, "inputs": 2, "max_rank": 16, "count": 1}
NUMBERS |= {"reach": 1, "first_input": 1, "first_output": 1, "copy": 40, "nx": 64, "ny": 64}
#: Pointers to the weights of experts (csrc/experts.h).
EXPERTS = ("gate_up", "down", "weights")


def test_an_op_is_a_typed_attribute_of_ops():
    """Without the annotation, mypy would take every call of the op."""
    for name, op in OPS.items():
        module = importlib.import_module(f"galley.kernels.ops.{name}")
        assert op.name == name
        assert module.__annotations__[name] == type(op).__name__


def test_an_op_runs_on_the_backend_of_its_ops():
    x = np.ones((2, 3), np.float32)

    class Names:
        def run(self, op, *args):
            return op.name, len(args)

    assert Ops(Names()).add(x, x) == ("add", 2)
    assert Ops(Names()).split(x, [1, 2]) == ("split", 2)
    with pytest.raises(AssertionError, match="without an Ops"):
        add_op(x, x)


def test_the_native_ops_are_all_there():
    assert set(NATIVE_OPS) == set(_native.ops())


def arguments(native):
    """A value for every documented argument, and the names of those that may be absent."""
    names = [*native.pointers, *native.ints, *native.floats]
    pointers = {n.removesuffix("?"): aligned((4096,), np.float32) for n in native.pointers}
    weight = aligned((4096,), np.float32)
    table = np.array([[weight.ctypes.data, 0, 64, 64, 0, 0, 0, 0, 0]] * 4, np.int64)
    pointers |= {n: table for n in EXPERTS if n in pointers}
    if "parts" in pointers:
        pointers["parts"] = np.array([[0, 64, 0, 16]], np.int32)
    ints = {n.removesuffix("?"): NUMBERS.get(n.removesuffix("?"), 0) for n in native.ints}
    floats = {n.removesuffix("?"): 1.0 for n in native.floats}
    optional = {n.removesuffix("?") for n in names if n.endswith("?")}
    # An absent kind, dimension or flag is 0.
    return pointers, {**ints, **floats}, optional | {n for n, v in ints.items() if v == 0}


def add(name, pointers, numbers):
    """The names of the columns that are read once the op is there."""
    native = Native()
    native.keep.append(pointers)
    if "adapter" in NATIVE_OPS[name].columns:
        native.bind(adapter=np.zeros(1, np.int32))
    if "num_kept" in NATIVE_OPS[name].columns:
        native.bind(num_kept=np.zeros(1, np.int32))
    if "prompt_rows" in NATIVE_OPS[name].columns:
        native.bind(prompt_rows=np.zeros(1, np.uint64), prompt_row=np.zeros((1, 64), np.int32))
    if "rows" in NATIVE_OPS[name].columns:
        native.bind(rows=np.zeros((1, 64), np.float32))
    native.program.add(name, {k: v.ctypes.data for k, v in pointers.items()}, numbers)
    return {name for name, is_read in native.program.columns().items() if is_read}


@pytest.mark.parametrize("name", sorted(NATIVE_OPS))
def test_native_arguments_are_those_that_are_documented(name):
    pointers, numbers, optional = arguments(NATIVE_OPS[name])
    columns = {*NATIVE_OPS[name].columns, "history", "num_computed"}  # which a program reads
    assert add(name, pointers, numbers) == columns
    for absent in (*pointers, *numbers):
        rest = {k: v for k, v in pointers.items() if k != absent}
        others = {k: v for k, v in numbers.items() if k != absent}
        if absent in optional:
            assert add(name, rest, others) == columns
            continue
        with pytest.raises(ValueError, match=rf"missing \w+ argument: {absent}\b"):
            add(name, rest, others)


def test_no_op_needs_torch_to_be_recorded():
    code = "import sys, galley.kernels.ops, galley.kernels.recorder; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_every_op_has_a_definition():
    """No method of `Op` that raises NotImplementedError is left."""
    for op in OPS.values():
        for method in ("reference", "record", "__call__"):
            owner = next(c for c in type(op).__mro__ if method in vars(c))
            assert owner.__module__ != "galley.kernels.ops.definition", (op.name, method)
