"""Requests made from the server's own description, and what is wrong with the answers.

`run` has schemathesis read /openapi.json and send what the description allows and what it forbids.
An answer is wrong if its status is 5xx, if status, content type, headers or body are not as
described, if a method that is not described is accepted, or a body that is forbidden.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import tiny
from benchmarks.served import Server, serve

KEY = "secret"
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "ignored_auth",
)
#: Every route that can be switched on, but for those that stop the server's work.
STOPPING = "^/(pause|sleep|release_kv_cache_memory)$"
FLAGS = (
    *("--api-key", KEY, "--enable-tokenizer-info-endpoint", "--trust-request-chat-template"),
    *("--enable-server-load-tracking", "--disable-uvicorn-access-log"),
)
#: A description does not show what a request costs: thousands of answers to one request would be
#: all that there is time for.
ENVIRONMENT = {
    "VLLM_MAX_N_SEQUENCES": "4",
    "VLLM_ENABLE_RESPONSES_API_STORE": "1",
    "VLLM_SERVER_DEV_MODE": "1",
}


@dataclass(frozen=True)
class Outcome:
    """Of one run.

    Attributes:
        requests: how many were sent.
        operations: how many of the description's were tested.
        failures: kinds of what was wrong, "ST101 Server error" and the like.
        report: schemathesis' own words.
    """

    requests: int
    operations: int
    failures: tuple[str, ...]
    report: str


@contextmanager
def tiny_server(folder: Path) -> Iterator[Server]:
    profiler = json.dumps({"profiler": "torch", "torch_profiler_dir": str(folder / "profiles")})
    flags = (*tiny.flags(folder), *FLAGS, "--profiler-config", profiler)
    with serve(*flags, env=ENVIRONMENT) as server:
        yield server


def run(server: Server, folder: Path, phases: str, *limits: str, seed: int) -> Outcome:
    """Ask `server` until `phases` end, or as `limits`, options of schemathesis, say; `folder` is
    for files.

    The phase `coverage` goes through every boundary of every field, `fuzzing` draws at random,
    `stateful` uses in one request what another answered.
    """
    report = folder / f"report-{seed}.json"
    command = [
        *(sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"),
        *("run", f"{server.url}/openapi.json", "--no-color", "--continue-on-failure"),
        *("--checks", ",".join(CHECKS), "--phases", phases),
        *(*limits, "-H", f"Authorization: Bearer {KEY}", "--seed", str(seed), "--no-shrink"),
        *("--exclude-path-regex", STOPPING),
        *("--generation-database", "none", "--report", "json"),
        *("--report-json-path", str(report), "--request-timeout", "60"),
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=1200)
    if not report.exists():
        raise RuntimeError(done.stdout[-4000:] + done.stderr[-4000:])
    told = json.loads(report.read_text())
    failures = [f"{f['code']} {f['title']}: {', '.join(f['operations'])}" for f in told["failures"]]
    failures += [str(error) for error in told["errors"]]
    begin = done.stdout.find("= FAILURES =")
    return Outcome(
        requests=told["test_cases"]["generated"],
        operations=told["operations"]["tested"],
        failures=tuple(failures),
        report=done.stdout[max(begin, 0) :],
    )


def log_of(server: Server) -> list[str]:
    """Lines of the log that report an error of the server."""
    return [line for line in server.log if "ERROR" in line or "Traceback" in line]
