"""20,000 requests made from the server's own description (`make check-schema`, minutes)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.schema.requests import log_of, run, tiny_server

REQUESTS = 20_000
#: Of one seed; each makes other requests.
LIMITS = ("--max-time", "90", "--max-examples", "20")


@pytest.mark.timeout(3600)
def test_many_requests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sent, seed = 0, 0
    with tiny_server(tmp_path) as server:
        while sent < REQUESTS:
            if seed == 0:
                outcome = run(server, tmp_path, "coverage", seed=seed)
            else:
                outcome = run(server, tmp_path, "fuzzing,stateful", *LIMITS, seed=seed)
            assert not outcome.failures, outcome.report
            assert outcome.requests > 100
            sent, seed = sent + outcome.requests, seed + 1
            with capsys.disabled():
                print(f"{sent} requests, no fault", flush=True)
        assert server.status("/health") == 200
        assert server.wait_idle().sum("vllm:kv_cache_usage_perc") == 0
        assert not log_of(server)
