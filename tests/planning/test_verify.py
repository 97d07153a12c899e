"""`galley plan --verify` serves the plan, and its memory is the predicted one."""

from __future__ import annotations

from itertools import chain, repeat

from msgspec.structs import replace

from galley.cli.plan_verify import measure
from galley.planning.machine import Machine
from galley.planning.program import planned_model
from galley.planning.simulate import Workload
from tests.small_model import small_model


def test_predicted_and_measured() -> None:
    engine = {"model": str(small_model()), "num_threads": 1}
    machine = Machine("m", "m", 2**32, 1e10, {"f32": 1e11})
    # Beside the server no memory is left for another.
    machines = chain([machine], repeat(replace(machine, memory=1)))
    row = measure(
        planned_model(engine), Workload(48, 8, 2, requests=4), engine, lambda model: next(machines)
    )
    figures = {figure[""]: figure for figure in row["figures"]}
    assert set(figures) == {
        *("memory, MB", "output tokens/s", "TTFT mean, ms", "ITL mean, ms", "ITL p99, ms")
    }
    assert all(figure["measured"] > 0 for figure in figures.values())
    assert 0.75 < figures["memory, MB"]["ratio"] < 1.25
    assert row["foreign_cores"] >= 0
    assert row["drift"] == 1
