"""Ops over recurrent states: native code against the definitions, and equal bits however cut."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from galley.kernels.ops import StateLayer
from galley.kernels.ops.causal_conv import conv_state
from galley.kernels.ops.gated_delta_rule import delta_state
from galley.kernels.ops.selective_scan import scan_state
from galley.kernels.ops.ssd_scan import SSDParameters, ssd_state
from galley.kernels.ops.wkv7 import Wkv7Parameters
from tests.kernels.native_harness import ISAS
from tests.kernels.states import Call, definition, native


def normal(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@dataclass(frozen=True)
class Case:
    """An op with its constants, its state, the columns of its values, and means other than 0."""

    call: Call
    constants: dict[str, np.ndarray]
    state: StateLayer
    widths: dict[str, int]
    means: dict[str, float] = field(default_factory=dict)


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


def ssd_case(
    head_dim: int, state_size: int, gated: bool, decay: float = 0.0, heads: int = 4
) -> Case:
    """With `decay` 5 some heads forget all before each token, others soon."""
    constants = {name: normal(heads, seed=i) for i, name in enumerate(("a_log", "d", "dt_bias"))}
    constants["a_log"] += decay
    widths = {"x": heads * head_dim, "b": 2 * state_size, "c": 2 * state_size, "dt": heads}
    if gated:
        widths["gate"] = heads * head_dim
    return Case(ssd, constants, StateLayer(0, *ssd_state(heads, head_dim, state_size)), widths)


def scan(ops, values, constants, state, ctx):
    return ops.selective_scan(**values, **constants, state=state, ctx=ctx)


def scan_case(channels: int, state_size: int, gated: bool) -> Case:
    constants = {"a_log": normal(channels, state_size, seed=1), "d": normal(channels, seed=2)}
    widths = {"x": channels, "dt": channels, "b": state_size, "c": state_size}
    if gated:
        widths["gate"] = channels
    return Case(scan, constants, StateLayer(0, *scan_state(channels, state_size)), widths)


def delta(ops, values, constants, state, ctx):
    return ops.gated_delta_rule(**values, **constants, key_heads=2, state=state, ctx=ctx)


def delta_case(keys: int, values: int, decay: float = 0.0) -> Case:
    heads = 4
    constants = {"a_log": normal(heads, seed=1) + decay, "dt_bias": normal(heads, seed=2)}
    widths = {"q": 2 * keys, "k": 2 * keys, "v": heads * values, "alpha": heads, "beta": heads}
    return Case(delta, constants, StateLayer(0, *delta_state(heads, keys, values)), widths)


def keyed_delta_case(keys: int, values: int, decay: float = 0.0) -> Case:
    """A decay of each key."""
    case, width = delta_case(keys, values, decay), 4 * keys
    constants = case.constants | {"dt_bias": normal(width, seed=2)}
    return Case(delta, constants, case.state, {**case.widths, "alpha": width})


def wkv(ops, values, constants, state, ctx):
    parameters = Wkv7Parameters(**constants, eps=1e-4, heads=2)
    return ops.wkv7(**values, parameters=parameters, state=state, ctx=ctx)


def wkv_case(size: int, mixes: bool, decay: float = 0.0) -> Case:
    """With `decay` 4 most keys have nearly the strongest decay, 0.55 a token."""
    names = ["k_k", "k_a", "r_k", "weight", "bias"]
    constants = {name: normal(2 * size, seed=i) for i, name in enumerate(names)}
    widths = dict.fromkeys([*"rwkva", *(["first", "mix"] if mixes else [])], 2 * size)
    state = StateLayer(0, *delta_state(2, size, size))
    return Case(wkv, constants, state, widths, {"w": decay})


CASES = {
    "selective scan": scan_case(channels=32, state_size=16, gated=False),
    "selective scan, odd sizes, gate": scan_case(channels=40, state_size=5, gated=True),
    "delta rule": delta_case(keys=32, values=48),
    "delta rule, odd sizes": delta_case(keys=18, values=20),
    "delta rule, panels": delta_case(keys=24, values=80),
    "delta rule, strong decay": delta_case(keys=32, values=16, decay=3.0),
    "delta rule by key": keyed_delta_case(keys=32, values=48),
    "delta rule by key, odd sizes": keyed_delta_case(keys=18, values=20),
    "delta rule by key, strong decay": keyed_delta_case(keys=32, values=16, decay=3.0),
    "wkv7": wkv_case(size=32, mixes=True),
    "wkv7, odd size": wkv_case(size=18, mixes=False),
    "wkv7, strong decay": wkv_case(size=16, mixes=False, decay=4.0),
    "convolution": conv_case(gated=False),
    "gated convolution": conv_case(gated=True),
    "ssd": ssd_case(head_dim=32, state_size=24, gated=False),
    "ssd, heads together": ssd_case(head_dim=16, state_size=12, gated=True, heads=16),
    "ssd, strong decay": ssd_case(head_dim=48, state_size=8, gated=False, decay=5.0),
    "ssd, odd sizes, gate": ssd_case(head_dim=20, state_size=13, gated=True),
}
LENGTHS = [70, 1, 37]
WHOLE = [LENGTHS]
#: Steps in which the sequences begin, stop and go on at different times.
CUT = [[13, 0, 5], [1, 1, 0], [40, 0, 31], *[[1, 0, 0]] * 6, [10, 0, 1]]


def rows_of(case) -> list[dict[str, np.ndarray]]:
    return [
        {
            name: normal(n, width, seed=10 * r + i) + np.float32(case.means.get(name, 0))
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
