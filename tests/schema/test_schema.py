"""The server against its own description, in brief; `make check-schema` takes minutes and
20,000 requests.
"""

from __future__ import annotations

from pathlib import Path

from tests.schema.requests import log_of, run, tiny_server


def test_answers_are_as_described(tmp_path: Path) -> None:
    with tiny_server(tmp_path) as server:
        outcome = run(server, tmp_path, "fuzzing,stateful", "--max-examples", "4", seed=1)
        assert not outcome.failures, outcome.report
        assert outcome.operations >= 30
        assert outcome.requests > 100
        assert server.status("/health") == 200
        assert not log_of(server)
