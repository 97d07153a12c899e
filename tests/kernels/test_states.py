"""Ops over recurrent states: native code against the definitions, and equal bits however cut."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from galley.kernels.ops import StateLayer
from galley.kernels.ops.causal_conv import conv_state
from galley.kernels.ops.ssd_scan import SSDParameters, ssd_state
from tests.kernels.native_harness import ISAS
from tests.kernels.states import Call, definition, native


def normal(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@dataclass(frozen=True)
class Case:
    """An op with its constants, its state, and the columns of its values."""

    call: Call
    constants: dict[str, np.ndarray]
    state: StateLayer
    widths: dict[str, int]


def conv(ops, values, constants, state, ctx):
    silu = "bias" in constants
    return ops.causal_conv(**values, **constants, state=state, ctx=ctx, silu=silu)


def conv_case(gated: bool) -> Case:
    """150 channels: two units of the state and a part of a third."""
    channels, taps = 150, 4
    constants = {"weight": normal(channels, 1, taps, seed=1)}
    if not gated:
        constants |= {"bias": normal(channels, seed=2), "scale": normal(channels, seed=3)}
    names = ["x", "before", "after"] if gated else ["x"]
    state = StateLayer(0, *conv_state(channels, taps))
    return Case(conv, constants, state, dict.fromkeys(names, channels))


def ssd(ops, values, constants, state, ctx):
    settings = {"groups": 2, "dt_min": 0.05, "dt_max": 1.5, "dt_scale": 0.8, "gate_scale": 1.3}
    return ops.ssd_scan(
        **values, parameters=SSDParameters(**constants, **settings), state=state, ctx=ctx
    )


def ssd_case(head_dim: int, state_size: int, gated: bool) -> Case:
    heads = 4
    constants = {name: normal(heads, seed=i) for i, name in enumerate(("a_log", "d", "dt_bias"))}
    widths = {"x": heads * head_dim, "b": 2 * state_size, "c": 2 * state_size, "dt": heads}
    if gated:
        widths["gate"] = heads * head_dim
    return Case(ssd, constants, StateLayer(0, *ssd_state(heads, head_dim, state_size)), widths)


CASES = {
    "convolution": conv_case(gated=False),
    "gated convolution": conv_case(gated=True),
    "ssd": ssd_case(head_dim=32, state_size=24, gated=False),
    "ssd, odd sizes, gate": ssd_case(head_dim=20, state_size=13, gated=True),
}
LENGTHS = [70, 1, 37]
WHOLE = [LENGTHS]
#: Steps in which the sequences begin, stop and go on at different times.
CUT = [[13, 0, 5], [1, 1, 0], [40, 0, 31], *[[1, 0, 0]] * 6, [10, 0, 1]]


def rows_of(case) -> list[dict[str, np.ndarray]]:
    return [
        {
            name: normal(n, width, seed=10 * r + i)
            for i, (name, width) in enumerate(case.widths.items())
        }
        for r, n in enumerate(LENGTHS)
    ]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", CASES)
def test_native_code_computes_the_definition(name: str, isa: str) -> None:
    case = CASES[name]
    rows = rows_of(case)
    got = native(case.call, case.constants, case.state, rows, WHOLE, isa)
    for want, result in zip(
        definition(case.call, case.constants, case.state, rows), got, strict=True
    ):
        np.testing.assert_allclose(result, want, rtol=2e-5, atol=2e-5 * np.abs(want).max())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", CASES)
def test_no_bit_depends_on_chunks_batch_threads_or_kept_states(name: str, isa: str) -> None:
    case = CASES[name]
    rows = rows_of(case)
    whole = native(case.call, case.constants, case.state, rows, WHOLE, isa)
    for interval, threads in ((0, 2), (16, 1), (48, 2)):
        cut = native(case.call, case.constants, case.state, rows, CUT, isa, interval, threads)
        for a, b in zip(whole, cut, strict=True):
            assert np.array_equal(a, b)
    [alone] = native(case.call, case.constants, case.state, rows[2:], [[37]], isa)
    assert np.array_equal(alone, whole[2])
