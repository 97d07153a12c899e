"""Every snippet of docs/ runs as printed, or says why it does not.

A block of bash or Python is run, with a server of the built-in model at localhost:8000. After it,
`<!-- output: TEXT -->` says what its output contains. Before it, `<!-- not run: WHY -->` leaves it
out; `<!-- snippets are not run: WHY -->` does so for a whole page. A command that starts a server
is parsed, not run.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.served import SMALL, Server, serve
from galley.cli.bench import main as bench
from galley.cli.main import COMMANDS
from galley.cli.parser import CommandParser
from galley.cli.serve import parser as serve_parser
from galley.config.vllm_flags import disposition

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if "generate" not in page.parts)
BLOCK = re.compile(
    r"(?P<left_out><!-- not run: [^>]+ -->\n)?^```(?P<language>[\w-]*)\n(?P<code>.*?)^```$"
    r"(?:\n+<!-- output: (?P<output>[^>]+) -->)?",
    re.M | re.S,
)
SHOWN = ("text", "json", "yaml", "toml")
#: A server's command: up to the end of the line that does not go on.
STARTS = re.compile(r"^galley serve\b(?:.*\\\n)*.*\n", re.M)


def blocks(page: Path) -> list[re.Match[str]]:
    text = page.read_text()
    return [] if "<!-- snippets are not run: " in text else list(BLOCK.finditer(text))


RUN = [
    pytest.param(block, id=f"{page.relative_to(DOCS)}-{i}")
    for page in PAGES
    for i, block in enumerate(blocks(page))
    if block["language"] in ("bash", "python") and not block["left_out"]
]


def test_every_block_says_its_language() -> None:
    for page in PAGES:
        for block in blocks(page):
            assert block["language"] in (*SHOWN, "bash", "python"), f"{page}: {block['code']}"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve(*SMALL) as server:
        yield server


@pytest.mark.parametrize("block", RUN)
def test_snippet(
    block: re.Match[str], server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = block["code"].replace("localhost:8000", f"127.0.0.1:{server.port}")
    starts = STARTS.findall(code) if block["language"] == "bash" else []
    code = STARTS.sub("", code) if starts else code
    own = {"XDG_STATE_HOME": str(tmp_path)}
    if "galley cache" in code:
        own["GALLEY_CACHE_DIR"] = str(tmp_path)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    interpreter = ["bash", "-ec"] if block["language"] == "bash" else [sys.executable, "-c"]
    done = subprocess.run(
        [*interpreter, code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, **own, "PATH": path},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (block["output"] or "") in done.stdout
    monkeypatch.chdir(tmp_path)
    for command in starts:
        words = shlex.split(command.replace("\\\n", " ").rstrip("&\n "), comments=True)
        serve_parser().parse(words[2:])


def every_flag() -> set[str]:
    """Spellings of the flags of all commands."""
    found = {"--help", "--version", "--config"}
    for table in (COMMANDS, bench.COMMANDS):
        for module, _ in table.values():
            make = getattr(importlib.import_module(module), "parser", None)
            known: CommandParser | None = make() if make else None
            for flag in known.flags.values() if known else ():
                found.update(flag.spellings)
                if flag.kind == "bool":
                    found.add(f"--no-{flag.option[2:]}")
    return found


def test_every_flag_exists() -> None:
    """Flags that the pages written for users name; of a table that compares with another engine,
    those of its last column. vLLM's others are in compatibility.md, with a reason.
    """
    known = every_flag()
    folders = ("start", "tutorials", "how-to")
    pages = [page for page in PAGES if page.parent.name in folders]
    for page in [*pages, DOCS / "migration.md", DOCS / "limitations.md", DOCS / "security.md"]:
        for line in page.read_text().splitlines():
            cells = line.strip("| ").split(" | ")
            text = cells[-1] if page.name == "migration.md" and len(cells) == 2 else line
            for code in re.findall(r"`((?:galley |--)[^`]+)`", text):
                for flag in re.findall(r"(?<![\w-])--[a-z][\w-]+", code):
                    refused = disposition(flag[2:].replace("-", "_"))[0] != "unknown"
                    assert flag in known or refused, f"{flag}: {line}"
