"""docs/compatibility/ against a running server: what it calls refused, is."""

from __future__ import annotations

import ast
import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.served import MODEL, SMALL, Server, serve
from galley.config.resolve import from_kwargs
from galley.config.vllm_flags import groups_of_vllm
from galley.errors import ConfigError

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "compatibility"
DATA = ROOT / "docs" / "generate" / "vllm"
CHAT = [{"role": "user", "content": "Hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": CHAT, "max_tokens": 1},
    "/v1/chat/completions/batch": {"messages": [CHAT], "max_tokens": 1},
    "/v1/completions": {"prompt": "Hi", "max_tokens": 1},
    "/v1/responses": {"input": "Hi", "max_output_tokens": 16},
    "/v1/messages": {"messages": CHAT, "max_tokens": 1},
    "/v1/messages/count_tokens": {"messages": CHAT},
    "/tokenize": {"messages": CHAT},
    "/detokenize": {"tokens": [1]},
}


def section(title: str) -> list[tuple[str, str, str]]:
    """Rows of a section's table: name, verdict, note."""
    text = (FOLDER / f"{title.lower().replace('`', '').replace(' ', '-')}.md").read_text()
    return re.findall(r"^\| (.+?) \| (works|no effect|refused|not yet) \| (.*) \|$", text, re.M)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve(*SMALL) as server:
        yield server


@pytest.mark.parametrize(
    ("title", "file", "key"),
    [
        ("Flags of `serve`", "flags.json", "serve"),
        ("Routes", "routes.json", "routes"),
        ("Metrics", "metrics.json", "metrics"),
        ("Environment variables", "variables.json", "variables"),
    ],
)
def test_every_name_has_one_verdict(title: str, file: str, key: str) -> None:
    entries = json.loads((DATA / file).read_text())[key]
    names = [e["name"] if "name" in e else f"{e['method']} {e['path']}" for e in entries]
    assert [name.strip("`") for name, _, _ in section(title)] == names


def test_refused_fields_are_refused(server: Server) -> None:
    """A 400 that names the field, for every one of them."""
    asked = 0
    for name, verdict, note in section("Request fields"):
        path, _, field = name.strip("`").partition(" ")
        if path not in BODIES or verdict not in ("refused", "not yet"):
            continue
        body = {"model": MODEL, **BODIES[path], field: {"a": [1]}}
        reply = httpx.post(server.url + path, json=body, timeout=60)
        assert reply.status_code == 400, f"{name}: {reply.status_code}, {note}"
        assert field in reply.text, f"{name}: {reply.text}"
        asked += 1
    assert asked > 10


def test_accepted_flags_are_accepted() -> None:
    """A server takes the hints of the page, all at once, and says so."""
    hints = [name.strip("`") for name, verdict, _ in section("Flags of `serve`")
             if verdict == "no effect"]  # fmt: skip
    assert len(hints) > 50
    with serve(*SMALL, *(word for flag in hints for word in (flag, "1"))) as server:
        assert server.status("/health") == 200
        log = "".join(server.log)
    assert all(f"{flag} is accepted" in log for flag in hints)


def test_a_flag_that_accepts_one_value_does_not_count_as_working() -> None:
    verdicts = {name.strip("`"): verdict for name, verdict, _ in section("Flags of `serve`")}
    sizes = ("--tensor-parallel-size", "--pipeline-parallel-size", "--data-parallel-size")
    for flag in (*sizes, "--distributed-executor-backend"):
        assert verdicts[flag] == "not yet"
    with pytest.raises(ConfigError, match="must be 1"):
        from_kwargs({"tensor_parallel_size": 2}, "server", {})


def test_groups_of_flags_are_those_of_vllm() -> None:
    """The groups that `--help=VllmConfig` and the like list."""
    flags = json.loads((DATA / "flags.json").read_text())["serve"]
    for group, names in groups_of_vllm().items():
        theirs = [flag["name"] for flag in flags if flag["group"].lower() == group]
        assert [f"--{name.replace('_', '-')}" for name in names] == theirs


@functools.cache
def functions(file: str) -> set[str]:
    """Names of all functions of a file."""
    tree = ast.parse((ROOT / file).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_item_of_the_checklist_has_its_test_or_is_missing() -> None:
    page = (FOLDER / "checklist.md").read_text()
    rows = re.findall(r"^\| (\d+) \| .+ \| (.*) \|$", page, re.M)
    assert [int(number) for number, _ in rows] == list(range(1, 286))
    for number, shown_by in rows:
        named = re.findall(r"`((?:tests|benchmarks)/[^`]+)`", shown_by)
        assert named or shown_by.startswith("*missing*"), number
        for name in named:
            file, _, test = name.partition("::")
            assert not test or test in functions(file), f"{number}: {name}"
