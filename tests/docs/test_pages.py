"""Generated pages are true, and links lead somewhere."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from galley.chat.reasoning import REASONING_PARSERS
from galley.chat.tool_parsers import TOOL_PARSERS
from galley.config.flags import flags_of
from galley.config.resolve import SECTIONS
from galley.config.server import ServerConfig

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
#: Those of the site, but for the folder of what makes them, and the guide, which has scripts.
SITE = sorted(p for p in DOCS.rglob("*.md") if not {"generate", "guide"} & set(p.parts))


def test_generated_pages_are_true() -> None:
    """Every flag, route, metric, variable and field of vLLM's has its row, and the row is right."""
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "generate", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


@pytest.mark.parametrize("page", [PAGES[0], *SITE], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """A page of the site links to no file outside it."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" not in target and not target.startswith("#"):
            file = (page.parent / target.partition("#")[0]).resolve()
            assert file.exists(), target
            assert page == PAGES[0] or file.is_relative_to(DOCS), target


def test_the_readme_lists_every_page() -> None:
    linked = set(re.findall(r"\]\(docs/([\w-]+\.md)\)", PAGES[0].read_text()))
    assert linked == {page.name for page in PAGES[1:]}


def test_the_site_has_every_page() -> None:
    listed = set(re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M))
    assert listed == {str(page.relative_to(DOCS)) for page in SITE}


def attributes(tree: ast.AST) -> set[str]:
    """Names that are read of objects, but for what only checks values."""
    if isinstance(tree, ast.FunctionDef) and tree.name in ("__post_init__", "check"):
        return set()
    own = {tree.attr} if isinstance(tree, ast.Attribute) else set()
    return own.union(*(attributes(child) for child in ast.iter_child_nodes(tree)))


def test_no_flag_is_swallowed() -> None:
    """The value of a flag is read somewhere, besides being checked."""
    unread = {f.name for owner in (ServerConfig, *SECTIONS.values()) for f in flags_of(owner)}
    for path in (ROOT / "galley").rglob("*.py"):
        text = path.read_text()
        if any(f".{name}" in text for name in unread):
            unread -= attributes(ast.parse(text))
    # There is one value, or all others are refused.
    assert unread <= {"tokenizer_mode", "tensor_parallel_size", "pipeline_parallel_size"}


def test_messages_of_failures_are_those_of_the_program() -> None:
    """docs/how-to/start-failures.md quotes what the code says, with … for what varies."""
    page = (DOCS / "how-to" / "start-failures.md").read_text()
    quoted = re.findall(r"`([^`]*…[^`]*)`", "".join(re.findall(r"^\|.+?\|", page, re.M)))
    said = "\n".join(path.read_text() for path in (ROOT / "galley").rglob("*.py"))
    said = re.sub(r'"\n\s+f?"', "", said)
    parts = {part.strip() for quote in quoted for part in quote.split("…") if part.strip()}
    assert len(parts) > 10
    assert [part for part in parts if part not in said] == []


def test_the_page_of_tool_calls_names_every_parser() -> None:
    page = (ROOT / "docs/tool-calling.md").read_text()
    named = set(re.findall(r"`([\w.-]+)`", page))
    assert {*TOOL_PARSERS, *REASONING_PARSERS} - named == set()
