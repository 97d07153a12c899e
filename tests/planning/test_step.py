"""The step model: loads, rates, and the machines of the table."""

from __future__ import annotations

import numpy as np
import pytest

from galley.errors import ConfigError
from galley.planning.machine import Machine, device, device_names, interpolate
from galley.planning.predict import step_model
from galley.planning.program import planned_model
from galley.planning.step import StepLoad
from galley.planning.work import work_of
from tests.small_model import small_model

MACHINE = Machine("m", "m", 2**32, 1e10, {"f32": 1e11, "int8": 4e11})


@pytest.mark.parametrize("window", [0, 1, 4, 100])
def test_positions_that_are_seen(window: int) -> None:
    rng = np.random.default_rng(window)
    computed, new = rng.integers(0, 12, 20), rng.integers(1, 9, 20)
    load = StepLoad(computed.astype(float), new.astype(float), 20, window)
    seen = [
        min(position + 1, window or position + 1)
        for before, count in zip(computed, new, strict=True)
        for position in range(before, before + count)
    ]
    assert load.visible == sum(seen)
    assert load.tokens == len(seen)


def test_speeds_between_those_that_were_measured() -> None:
    curve = [(1, 10.0), (4, 40.0), (64, 40.0)]
    assert [interpolate(curve, rows) for rows in (0.5, 1, 2, 4, 16, 500)] == pytest.approx(
        [10, 10, 20, 40, 40, 40]
    )


def test_a_step_is_the_sum_of_its_operations_at_the_limits() -> None:
    """Without overheads and measured speeds: max(bytes / read, operations / peak) of each."""
    model = planned_model({"model": str(small_model())})
    load = StepLoad.of([100] * 3, [1] * 3, 3)
    steps = step_model(model, MACHINE)
    works = [work_of(node, load, steps._cache(node)) for node in model.nodes]
    peaks = {"int8": 4e11, "bf16": 1e11, "f32": 1e11}  # no unit for bf16: as f32
    floor = sum(max(w.bytes / 1e10, w.operations / peaks[w.arithmetic]) for w in works)
    assert steps.seconds(load) == pytest.approx(floor)
    # Two ranks halve the work and exchange twice a layer.
    linked = Machine("m", "m", 2**32, 1e10, MACHINE.peak, devices=2, link=1e9, link_seconds=1e-5)
    exchange = 2 * 2 * (1e-5 + 3 * 576 * 2 / 1e9)
    assert step_model(model, linked, 2).seconds(load) == pytest.approx(floor / 2 + exchange)


def test_measured_speeds_are_of_whole_operations() -> None:
    model = planned_model({"model": str(small_model())})
    [node] = [n for n in model.nodes if n.op == "linear"][-1:]
    load = StepLoad.of([0], [1], 1)
    work = work_of(node, load, step_model(model, MACHINE)._cache(node))
    rates = {work.weights: [(1.0, 2e9)]}
    measured = Machine("m", "m", 2**32, 1e10, MACHINE.peak, rates=rates, op_seconds=1.0)
    parts = {part.label: part.seconds for part in step_model(model, measured).parts(load)}
    assert parts[work.label] == pytest.approx(work.operations / 2e9)


def test_devices_of_the_table() -> None:
    assert {"h100", "a100-80gb"} <= set(device_names())
    eight = device("8xH100")
    assert (eight.devices, eight.memory) == (8, 80_000_000_000)
    assert eight.read < 3.35e12
    for name in device_names():
        found = device(name)
        assert found.sources, name
        assert found.watts, name
        assert {"f32", "bf16", "int8"} <= set(found.peak), name
    for name in ("h1000", "0xh100", "65xh100", "8x", ""):
        with pytest.raises(ConfigError, match="Known: this, h100"):
            device(name)
