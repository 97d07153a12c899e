"""The guide: Markdown of docs/guide, rendered when it is asked for.

A page may hold HTML and name modules and data beside it; the Content-Security-Policy is that of the
web UI, so there are no inline scripts and styles.
"""

from __future__ import annotations

import html
import re
from functools import cache
from itertools import pairwise
from pathlib import Path

from galley.ui import TYPES, File, headers

#: In an installed package, and in a checkout.
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
<a href="{up}guide/" aria-current="page">Guide</a></nav></header>
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
    """A page, or a file beside one, by its path in the folder; None: there is none."""
    root = folder()
    if root is None:
        return None
    path = (root / name).resolve()
    kind = TYPES[".html"] if path.suffix == ".md" else TYPES.get(path.suffix)
    if kind is None or not path.is_relative_to(root) or not path.is_file():
        return None
    body = path.read_bytes()
    if path.suffix == ".md":
        body = render(body.decode(), "../" * (1 + name.count("/"))).encode()
    return File(body, headers(kind, body))


def render(text: str, up: str) -> str:
    """A page of Markdown as HTML. Headings can be linked to as GitHub's can.

    Args:
        up: relative address of the UI's files.
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
    for token in tokens:
        if "text-align:right" in str(token.attrs.pop("style", "")):
            token.attrSet("class", "n")
    body = parser.renderer.render(tokens, parser.options, {})
    # The keyboard must reach everything that can be scrolled.
    body = body.replace("<pre>", '<pre tabindex="0">')
    return _FRAME.format(title=html.escape(title), up=up, body=body)


def anchor(heading: str) -> str:
    """The id of a heading: its words in lower case, joined by dashes."""
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.lower()))
