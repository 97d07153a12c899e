"""`galley plan --verify` serves the plan, and its memory is the predicted one."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

from galley.cli.plan_verify import measure, wait_until_loaded
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


def test_a_server_that_loads_is_waited_for() -> None:
    statuses = [503, 503, 200, 200]

    class Loading(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(statuses.pop(0) if self.path == "/health" else 404)
            self.end_headers()

    with HTTPServer(("127.0.0.1", 0), Loading) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        wait_until_loaded(server.server_port)
        server.shutdown()
        thread.join()
    assert statuses == [200]
