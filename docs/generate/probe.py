"""Facts that the running program reports: routes, metrics, variables, sockets.

Three servers with the built-in model are asked: one as it comes, with a key; one with everything
switched on that adds to its surface; one that embeds.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.served import MODEL, ROOT, SMALL, Server, serve
from galley.cli.serve import parser

KEY = "key"
#: All that adds a route or a metric; what this version has not is left out.
SWITCHES: tuple[tuple[str, ...], ...] = (
    ("--enable-tokenizer-info-endpoint",),
    ("--profiler-config", '{"profiler": "torch", "torch_profiler_dir": "%(tmp)s"}'),
    ("--kv-cache-metrics",),
    ("--tool-call-parser", "hermes"),
    ("--enable-mfu-metrics",),
    ("--enable-sleep-mode",),
    ("--enable-server-load-tracking",),
    ("--enable-scale-out",),
    ("--enable-fault-tolerance",),
    ("--enable-offline-docs",),
    ("--enable-lora",),
)
#: Variables that the servers must not find, so that the pages are the same wherever they are made.
OWN = ("VLLM_", "GALLEY_", "OTEL_", "HF_", "PROMETHEUS_", "NO_COLOR", "FORCE_COLOR")
VARIABLES = {
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_ENABLE_RESPONSES_API_STORE": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_ENABLE_COHERE_API": "1",
}


@dataclass
class Program:
    """The facts found.

    Attributes:
        plain, switched: routes ("GET /health") of the server as it comes, and with all switches.
        guarded: those of `switched` that ask for a key.
        metrics: family → (type, labels) of the switched server.
        variables: environment variables that were read.
        contacts: kind and address of all that was connected to, bound or resolved.
        listening: sockets that listen: (family, what), random parts cut out.
        openapi: paths of the switched server's OpenAPI document and of a pooling server's.
        metric_help: family → what it says of itself, of the switched server.
    """

    plain: set[str] = field(default_factory=set)
    switched: set[str] = field(default_factory=set)
    guarded: set[str] = field(default_factory=set)
    metrics: dict[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)
    variables: set[str] = field(default_factory=set)
    contacts: set[tuple[str, str]] = field(default_factory=set)
    listening: set[tuple[str, str]] = field(default_factory=set)
    openapi: dict[str, dict[str, Any]] = field(default_factory=dict)
    metric_help: dict[str, str] = field(default_factory=dict)


def probe(routes: list[str]) -> Program:
    """Ask the servers for `routes` and for all that their OpenAPI documents list."""
    program = Program()
    with tempfile.TemporaryDirectory() as folder:
        watch = Path(folder) / "plain"
        with watched(watch, "--api-key", KEY) as server:
            generate(server, KEY)
            program.plain = existing(server, routes, key=KEY)
            asked = {*program.plain, *(r for r in routes if r.startswith("POST "))}
            program.guarded = {r for r in asked if ask(server, *r.split(" ", 1)) == 401}
            program.listening = listening(server)
        read_notes(watch, program)
        known = parser()
        flags = [w % {"tmp": folder} for s in SWITCHES if known.find(s[0])[0] for w in s]
        watch = Path(folder) / "switched"
        with watched(watch, *flags, env=VARIABLES) as server:
            generate(server)
            program.switched = existing(server, routes)
            exposition = server.get("/metrics")
            program.metrics, program.metric_help = families(exposition), helps(exposition)
            program.openapi = json.loads(server.get("/openapi.json"))["paths"]
            program.listening |= listening(server)
        # Whoever copies the environment reads all of it: only what is not set tells something.
        variables = set(program.variables)
        read_notes(watch, program)
        program.variables = variables
    with serve(*SMALL, "--runner", "pooling", without=OWN) as server:
        program.switched |= existing(server, routes)
        program.openapi |= json.loads(server.get("/openapi.json"))["paths"]
    return program


def read_notes(watch: Path, program: Program) -> None:
    for line in watch.read_text().splitlines():
        kind, _, name = line.partition(" ")
        if kind == "env":
            program.variables.add(name)
        else:
            program.contacts.add((kind, name))


@contextmanager
def watched(watch: Path, *flags: str, env: dict[str, str] | None = None) -> Iterator[Server]:
    """A server whose environment and sockets are watched; without variables of the caller's."""
    program = (str(ROOT / "docs" / "generate" / "watched.py"),)
    with serve(
        *SMALL,
        *flags,
        env={"WATCH_FILE": str(watch), **(env or {})},
        without=OWN,
        program=program,
    ) as server:
        yield server


def generate(server: Server, key: str | None = None) -> None:
    """One request of each kind, so that what is read on demand is read."""
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    ask(server, "POST", "/v1/chat/completions", chat, key)
    ask(server, "POST", "/v1/completions", {"model": MODEL, "prompt": "Hi", "max_tokens": 2}, key)
    ask(server, "POST", "/tokenize", {"prompt": "Hi"})


def ask(server: Server, method: str, path: str, body: Any = None, key: str | None = None) -> int:
    """The status of a request; 0 where the connection was refused or left hanging."""
    return answer(server, method, path, body, key)[0]


def answer(
    server: Server, method: str, path: str, body: Any = None, key: str | None = None
) -> tuple[int, bytes]:
    headers = {"content-type": "application/json"}
    if key:
        headers["authorization"] = f"Bearer {key}"
    data = json.dumps({} if body is None else body).encode() if method != "GET" else None
    request = urllib.request.Request(server.url + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as e:
        return e.code, e.read()


def existing(server: Server, routes: list[str], key: str | None = None) -> set[str]:
    """Which of the routes there are, and all of the server's OpenAPI document."""
    document = json.loads(server.get("/openapi.json"))
    found = {
        f"{method.upper()} {path}" for path, item in document["paths"].items() for method in item
    }
    templates = {re.sub(r"\{[^}]*\}", "{}", route) for route in found}
    for route in routes:
        method, path = route.split(" ", 1)
        if method not in ("GET", "POST", "DELETE") or route in found:
            continue
        if re.sub(r"\{[^}]*\}", "{}", route) in templates:
            found.add(route)
            continue
        if "{" in path:
            continue
        path = path.replace("*", "swagger-ui.css")
        status, body = answer(server, method, path, key=key)
        # 403: a flag opens it.
        if status not in (403, 405) and (status != 404 or b": Not Found" not in body):
            found.add(route)
    return found


def families(text: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Type and labels by family, of an exposition."""
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for name, kind in re.findall(r"^# TYPE (\S+) (\w+)$", text, re.M):
        name = name.removesuffix("_total") if kind == "counter" else name
        suffix = {"counter": "_total", "histogram": "_count", "summary": "_count"}.get(kind, "")
        sample = re.search(rf"^{re.escape(name + suffix)}(?:\{{(.*)\}})? ", text, re.M)
        labels = re.findall(r'(\w+)="', sample[1] or "") if sample else []
        if not name.endswith("_created"):
            found[name] = (kind, tuple(sorted(labels)))
    return found


def helps(text: str) -> dict[str, str]:
    """Help by family, of an exposition."""
    found = re.findall(r"^# HELP (\S+) (.+)$", text, re.M)
    return {name.removesuffix("_total"): help for name, help in found}


def listening(server: Server) -> set[tuple[str, str]]:
    """Sockets of the server's processes that listen, by /proc: ports and names made general."""
    inodes: set[str] = set()
    for pid in server.pids():
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = os.readlink(link)
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    found: set[tuple[str, str]] = set()
    for family in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{family}").read_text().splitlines()[1:]:
            words = line.split()
            listens = words[3] == "0A" or family.startswith("udp")
            if words[9] in inodes and listens:
                port = int(words[1].rpartition(":")[2], 16)
                found.add((family, "--port" if port == server.port else str(port)))
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        words = line.split()
        if words[6] in inodes and int(words[3], 16) & 0x10000:
            name = words[7] if len(words) > 7 else "unnamed"
            found.add(("unix", re.sub(r".*/galley-\d+-\d+-[^/]*", "galley-UID-PID-…", name)))
    return found
