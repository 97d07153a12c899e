"""The services of compose.yaml by their real programs: two servers, nginx and Prometheus.

Not a part of the gate: `make check-deploy`. Grafana is in no package that this can install; its
dashboard's queries are tried in check_prometheus.py.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from benchmarks.served import MODEL, SMALL, Server, serve
from tests.deploy.check_prometheus import Prometheus, shortened
from tests.deploy.promql import DEPLOY
from tests.deploy.tools import free_port, run, wait_until

pytestmark = pytest.mark.timeout(300)
KEY = "secret"


def arguments() -> list[str]:
    """Of `galley serve` in the file, without a model."""
    compose = yaml.safe_load((DEPLOY / "docker" / "compose.yaml").read_text())
    return [word for word in compose["services"]["galley"]["command"] if "MODEL" not in word]


@pytest.fixture(scope="module")
def stack(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[str, Prometheus, list[Server]]]:
    """(URL of nginx, Prometheus, the servers)."""
    folder = tmp_path_factory.mktemp("stack")
    flags = (*arguments(), *SMALL, "--api-key", KEY)
    with serve(*flags) as one, serve(*flags) as two:
        web, database = free_port(), free_port()
        text = (DEPLOY / "nginx" / "nginx.conf").read_text()
        names = "".join(f"server 127.0.0.1:{server.port};" for server in (one, two))
        text = text.replace("server galley:8000;", names).replace("/tmp/nginx", f"{folder}/nginx")
        text = text.replace("listen 8080", f"listen 127.0.0.1:{web}")
        text = text.replace("/dev/stdout", f"{folder}/out").replace("/dev/stderr", f"{folder}/err")
        (folder / "nginx.conf").write_text(text)
        nginx = ("nginx", "-e", folder / "start", "-c", folder / "nginx.conf")
        run(*nginx, "-t")
        commands = (
            [*map(str, nginx), "-g", "daemon off;"],
            [
                "prometheus",
                f"--config.file={shortened(folder, one.port, two.port)}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{database}",
            ],
        )
        with (folder / "log").open("w") as log:
            processes = [subprocess.Popen(c, stdout=log, stderr=log) for c in commands]
        try:
            yield f"http://127.0.0.1:{web}", Prometheus(f"http://127.0.0.1:{database}"), [one, two]
        finally:
            for process in processes:
                process.terminate()
                process.wait(20)


def test_both_servers_answer_and_are_watched(
    stack: tuple[str, Prometheus, list[Server]], tmp_path: Path
) -> None:
    """Checklist 251, 265: by one address, with one key; and the go/no-go script agrees (205)."""
    url, prometheus, servers = stack
    body = {"model": MODEL, "prompt": "Light", "max_tokens": 4, "temperature": 0}
    key = {"authorization": f"Bearer {KEY}"}

    def ask() -> str:
        reply = httpx.post(f"{url}/v1/completions", json=body, headers=key, timeout=60)
        return str(reply.raise_for_status().json()["choices"][0]["text"])

    def reachable() -> bool:
        try:
            return httpx.get(f"{url}/health").status_code == 200
        except httpx.HTTPError:
            return False

    wait_until(reachable, 30, "nginx answers")
    assert len({ask() for _ in range(8)}) == 1
    for server in servers:
        assert server.metrics().sum("vllm:request_success_total") >= 1
    assert httpx.post(f"{url}/v1/completions", json=body).status_code == 401
    wait_until(lambda: len(prometheus.query("up == 1")) == 2, 60, "Prometheus sees both")
    total = "sum(vllm:request_success_total)"
    wait_until(lambda: float(prometheus.query(total)[0]["value"][1]) >= 8, 30, "and their requests")
