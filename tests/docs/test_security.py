"""docs/security.md against a running server: keys, sockets, and what goes out."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.served import MODEL, SMALL, Server, serve
from galley.cli.serve import parser

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()
KEY = "secret"
WATCHED = (str(ROOT / "docs" / "generate" / "watched.py"),)
PROMPT = "Unmistakable words: quokka zeppelin"


def rows(after: str) -> list[list[str]]:
    """Cells of the table that follows a heading or mark, without its head."""
    table = PAGE.split(after, 1)[1].split("\n|", 1)[1].split("\n\n", 1)[0]
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


class Watched:
    """A server, and what it was seen to do."""

    def __init__(self, server: Server, notes: Path) -> None:
        self.server = server
        self._notes = notes

    def contacts(self, *kinds: str) -> set[str]:
        lines = [line.partition(" ") for line in self._notes.read_text().splitlines()]
        return {name for kind, _, name in lines if kind in kinds}

    def request(self, method: str, path: str, body: Any = None, key: str = "") -> int:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        url = self.server.url + path.replace("{response_id}", "resp_1")
        json = {} if body is None and method != "GET" else body
        return httpx.request(method, url, json=json, headers=headers, timeout=60).status_code


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A server with a key that has answered a few requests, offline."""
    notes = tmp_path_factory.mktemp("watched") / "notes"
    env = {"WATCH_FILE": str(notes), "HF_HUB_OFFLINE": "1", "VLLM_MAX_N_SEQUENCES": "4"}
    flags = (*SMALL, "--api-key", KEY)
    with serve(*flags, env=env, program=WATCHED) as server:
        found = Watched(server, notes)
        chat = {"model": MODEL, "messages": [{"role": "user", "content": PROMPT}]}
        assert found.request("POST", "/v1/chat/completions", {**chat, "max_tokens": 2}, KEY) == 200
        plain = {"model": MODEL, "prompt": PROMPT, "max_tokens": 2}
        assert found.request("POST", "/v1/completions", plain, KEY) == 200
        yield found


def test_every_line_names_a_switch_and_a_test_that_there_are() -> None:
    """Checklist 238, 240."""
    known = parser()
    lines = rows("## Hardening")
    assert len(lines) > 15
    for _, what, by, held in lines:
        assert what
        for flag in re.findall(r"`(--[\w-]+)`", by):
            assert known.find(flag)[0], flag
        for path in re.findall(r"`(deploy/[^`]+)`", by):
            assert (ROOT / path).exists(), path
        tests = re.findall(r"`(tests/[^`:]+)::(\w+)`", held)
        assert tests, what
        for path, name in tests:
            tree = ast.parse((ROOT / path).read_text())
            names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
            assert name in names, f"{path} has no {name}"
    assert PAGE.index("reverse proxy") < PAGE.index("## Hardening")


def test_nothing_is_promised_about_fips() -> None:
    """Checklist 230, 243: the settings are named, and no conformance is claimed."""
    [line] = [what for _, what, by, _ in rows("## Hardening") if "--prefix-caching-hash-algo" in by]
    assert "no claim of FIPS" in line
    assert parser().flags["prefix_caching_hash_algo"].default == "sha256"
    assert PAGE.count("FIPS") == line.count("FIPS")


def test_the_table_of_keys_is_true(watched: Watched) -> None:
    """Checklist 171, 183, 226, 227: with and without a key, and with a wrong one."""
    table = rows("<!-- routes:")
    assert len(table) > 15
    for route, key, there in table:
        method, path = route.strip("`").split(" ")
        if there != "always":
            continue
        for given, refused in (("", key == "needed"), ("wrong", key == "needed"), (KEY, False)):
            status = watched.request(method, path, key=given)
            assert (status == 401) == refused, f"{route} with key {given!r}: {status}"


def test_only_the_listed_sockets_listen(watched: Watched) -> None:
    """Checklist 225, 231, 241: one port; Unix sockets that only this user reaches."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("probe", ROOT / "docs" / "generate" / "probe.py")
    assert spec is not None
    assert spec.loader is not None
    probe = importlib.util.module_from_spec(spec)
    sys.modules["probe"] = probe
    spec.loader.exec_module(probe)
    listening = probe.listening(watched.server)
    assert {where for family, where in listening if family != "unix"} == {"--port"}
    unix = {where for family, where in listening if family == "unix"}
    assert all(where.startswith("galley-UID-PID-…/") for where in unix)
    listed = {where.strip("`") for _, where, _ in rows("<!-- sockets:")}
    assert {"--port"} | unix == listed


def test_nothing_goes_out(watched: Watched) -> None:
    """Checklist 239: no name is resolved, and nothing is connected to but its own sockets."""
    hosts = watched.contacts("resolve") - {"127.0.0.1", "localhost", "None"}
    assert not hosts
    for address in watched.contacts("connect"):
        assert address.startswith(("('127.0.0.1'", "/tmp/", "b'/tmp")), address
    assert watched.contacts("bind"), "the watch has seen nothing"
    own = {str(pid) for pid in watched.server.pids()}
    inodes = set()
    for pid in own:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                inodes.add(str(link.readlink()))
            except OSError:
                continue
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if f"socket:[{words[9]}]" in inodes:
            assert words[2].split(":")[0] in ("0100007F", "00000000"), line


def test_an_absent_model_is_not_looked_for(tmp_path: Path) -> None:
    """Checklist 239."""
    notes = tmp_path / "notes"
    env = {"WATCH_FILE": str(notes), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    with (
        pytest.raises(RuntimeError, match=r"HF_HUB_OFFLINE|offline"),
        serve("--model", "nobody/nothing", env=env, program=WATCHED),
    ):
        pass
    seen = notes.read_text()
    assert "huggingface" not in "".join(
        line for line in seen.splitlines() if line.startswith(("connect", "resolve"))
    )


def test_development_and_profiler_routes_are_absent(watched: Watched) -> None:
    """Checklist 173–175, 233, 234."""
    for path in (
        *("/collective_rpc", "/reset_prefix_cache", "/sleep", "/wake_up", "/is_sleeping"),
        *("/pause", "/resume", "/server_info", "/start_profile", "/stop_profile"),
        *("/update_weights", "/v1/load_lora_adapter", "/reset_mm_cache"),
    ):
        for method in ("GET", "POST"):
            assert watched.request(method, path, key=KEY) == 404, path


def test_n_is_capped(watched: Watched) -> None:
    """Checklist 181, 237, 242."""
    body = {"model": MODEL, "prompt": "a", "max_tokens": 1}
    assert watched.request("POST", "/v1/completions", {**body, "n": 4}, KEY) == 200
    assert watched.request("POST", "/v1/completions", {**body, "n": 5}, KEY) == 400


def test_prompts_are_not_logged(watched: Watched) -> None:
    """Checklist 224."""
    log = "".join(watched.server.log)
    assert "POST /v1/completions" in log
    assert "quokka" not in log
    assert KEY not in log


def test_documentation_can_be_switched_off() -> None:
    with serve(*SMALL, "--disable-fastapi-docs") as server:
        for path in ("/docs", "/redoc", "/openapi.json"):
            assert server.status(path) == 404


def test_nothing_unpickles() -> None:
    """Checklist 225: no pickle in the program, from a socket or from a file."""
    modules = r"^\s*(?:import|from) (?:.*, )?(?:pickle|cloudpickle|marshal|shelve|dill)\b"
    for path in (ROOT / "galley").rglob("*.py"):
        assert not re.search(modules, path.read_text(), re.M), path
