"""`galley plan --verify` serves the plan, and its memory is the predicted one."""

from __future__ import annotations

from galley.cli.plan_verify import measure
from galley.planning.machine import Machine
from galley.planning.program import planned_model
from galley.planning.simulate import Workload
from tests.small_model import small_model


def test_predicted_and_measured() -> None:
    engine = {"model": str(small_model()), "num_threads": 1}
    # Beside the server no memory is left for another.
    machine = Machine("m", "m", 1, 1e10, {"f32": 1e11})
    load = Workload(48, 8, 2, requests=4)
    row = measure(planned_model(engine), load, engine, lambda model: lambda: machine)
    figures = {figure[""]: figure for figure in row["figures"]}
    assert set(figures) == {
        *("memory, MB", "output tokens/s", "TTFT mean, ms", "ITL mean, ms", "ITL p99, ms")
    }
    assert all(figure["measured"] > 0 for figure in figures.values())
    assert 0.75 < figures["memory, MB"]["ratio"] < 1.25
    assert row["foreign_cores"] >= 0
    assert row["drift"] == 1
