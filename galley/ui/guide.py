"""The guide as pages: Markdown of docs/guide, rendered when it is asked for.

A page may hold HTML and name its own modules, pictures and data, all from the same folder; the
Content-Security-Policy is that of the web UI, so there are no inline scripts and styles.
"""

from __future__ import annotations

import html
import re
from functools import cache
from itertools import pairwise
from pathlib import Path

from galley.ui import TYPES, File, headers

_PLACES = (Path(__file__).parent / "guide", Path(__file__).parents[2] / "docs" / "guide")
_FRAME = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} · Galley</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="{up}style.css">
<script type="module" src="{up}theme.js"></script>
</head>
<body>
<header><span class="brand">Galley</span><nav aria-label="Pages"><a href="{up}">Live</a>
<a href="{start}" aria-current="page">Guide</a></nav></header>
<main class="guide">
{body}
</main>
</body>
</html>
"""


@cache
def folder() -> Path | None:
    """Where the guide is; None: this installation has none."""
    return next((place for place in _PLACES if (place / "index.md").is_file()), None)


@cache
def read(name: str) -> File | None:
    """A page or another file of the guide by its path in the folder; None: there is none."""
    root = folder()
    name = name or "index.md"
    if root is None or name not in {str(p.relative_to(root)) for p in root.rglob("*")}:
        return None
    path = root / name
    if path.suffix == ".md":
        depth = name.count("/")
        body = render(path.read_text(encoding="utf-8"), "../" * (depth + 1), "../" * depth or "./")
        return File(body.encode(), headers(TYPES[".html"], body.encode()))
    if path.suffix not in TYPES:
        return None
    body_bytes = path.read_bytes()
    return File(body_bytes, headers(TYPES[path.suffix], body_bytes))


def render(text: str, up: str, start: str) -> str:
    """A page of Markdown as HTML. Headings can be linked to as GitHub's can.

    Args:
        up, start: relative addresses of the UI's files, and of the guide's first page.
    """
    from markdown_it import MarkdownIt  # for the guide alone

    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    tokens = parser.parse(text)
    title = "Guide"
    for token, inline in pairwise(tokens):
        if token.type == "heading_open":
            token.attrSet("id", anchor(inline.content))
            if token.tag == "h1":
                title = inline.content
    body = parser.renderer.render(tokens, parser.options, {})
    return _FRAME.format(title=html.escape(title), up=up, start=start, body=body)


def anchor(heading: str) -> str:
    """The id of a heading: its words in lower case, joined by dashes."""
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.lower()))
