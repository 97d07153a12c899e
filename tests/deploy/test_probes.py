"""The container's health check, and go or no-go from histograms, against a server's own answers."""

from __future__ import annotations

import importlib.util
import random
from collections import Counter
from pathlib import Path
from types import ModuleType

import httpx
import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from galley.config.server import ServerConfig
from tests.deploy.promql import DEPLOY
from tests.server.served import serve
from tests.server.test_tls import CERT, KEY


def load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, DEPLOY / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("tls", [False, True])
def test_health_follows_port_and_tls(
    tls: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checklist 245."""
    check = load("docker/healthcheck.py")
    monkeypatch.setattr(check, "PROC", tmp_path)
    (tmp_path / "1").mkdir()
    config = ServerConfig(ssl_certfile=CERT, ssl_keyfile=KEY) if tls else ServerConfig()
    with serve(config) as served:
        assert not check.is_healthy()
        title = f"Galley::Launcher :{served.port} some/model\0"
        (tmp_path / "1" / "cmdline").write_text(title)
        assert check.is_healthy()
    assert not check.is_healthy()


def test_quantiles_are_those_of_prometheus() -> None:
    """Checklist 205: within the bucket that holds the exact one."""
    script, rng, registry = load("prometheus/go_no_go.py"), random.Random(3), CollectorRegistry()
    bounds = (0.01, 0.1, 0.5, 1.0, 5.0)
    histogram = Histogram(script.TTFT, "x", ["m"], registry=registry, buckets=bounds)
    values = [rng.lognormvariate(-2, 1) for _ in range(500)]
    for i, value in enumerate(values):
        histogram.labels(m=str(i % 2)).observe(value)
    buckets = script.Scrape(generate_latest(registry).decode()).buckets(script.TTFT)
    for q in (0.5, 0.9, 0.99):
        exact = sorted(values)[int(q * len(values))]
        found = script.quantile(q, buckets)
        above = next(bound for bound in bounds if bound >= exact)
        assert max([0.0, *(b for b in bounds if b < above)]) <= found <= above
    assert script.quantile(0.99, Counter()) is None


def test_go_and_no_go(capsys: pytest.CaptureFixture[str]) -> None:
    """Checklist 205."""
    script = load("prometheus/go_no_go.py")
    assert script.main(["http://127.0.0.1:9", "--seconds", "0"]) == 1
    with serve(ServerConfig()) as served:
        real = script.watch

        def busy(url: str, seconds: float) -> object:
            before = script.Scrape(script.fetch(f"{url}/metrics"))
            for _ in range(3):
                httpx.post(f"{url}/v1/completions", json={"prompt": "hi"}).raise_for_status()
            return (before, *real(url, seconds)[1:])

        script.watch = busy
        asked = [f"http://127.0.0.1:{served.port}", "--seconds", "0.1", "--requests", "3"]
        capsys.readouterr()
        assert script.main([*asked, "--ttft", "60", "--itl", "60"]) == 0, capsys.readouterr().out
        assert capsys.readouterr().out.endswith("GO\n")
        assert script.main([*asked, "--ttft", "0", "--itl", "60"]) == 1
        shown = capsys.readouterr().out
        assert "FAILS  p99 first token" in shown
        assert shown.endswith("NO-GO\n")
