"""The guide: Markdown of docs/guide as HTML pages, and the source files that they name.

A page may hold HTML and name modules and data beside it; the Content-Security-Policy is that of the
web UI, so there are no inline scripts and styles. A server renders a page when it is asked for;
`make docs-site` writes all of them.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

from galley import ui
from galley.ui import TYPES, File, headers

#: In an installed package, and in a checkout.
_PLACES = (Path(__file__).parent / "guide", Path(__file__).parents[2] / "docs" / "guide")
_PACKAGE = Path(__file__).parents[1]
#: Files of the web UI that every page loads.
_ASSETS = ("style.css", "theme.js")
_FRAME = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} · Galley</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="{assets}style.css">
<script type="module" src="{assets}theme.js"></script>
</head>
<body>
<header><span class="brand">Galley</span><nav aria-label="Pages"><a href="{home}">{above}</a>
<a href="{root}index.html" aria-current="page">Guide</a></nav></header>
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
    """The answer of a server for a path below /ui/guide/; None: there is none.

    Args:
        name: PAGE.html, or PAGE.md; source/galley/FILE.py.html; or a file beside the pages.
    """
    found = _contents(name, in_site=False)
    return found and File(found[0], headers(found[1], found[0]))


def site() -> Iterator[tuple[str, bytes]]:
    """Names and contents of the guide as static files, and of all that they need."""
    root = folder()
    assert root is not None
    names = [str(path.relative_to(root)) for path in sorted(root.rglob("*.*"))]
    pages = [Path(name).with_suffix(".html") if name.endswith(".md") else name for name in names]
    sources: set[str] = set()
    for name in map(str, pages):
        if (found := _contents(name, in_site=True)) is not None:
            sources.update(re.findall(r'href="(source/[\w/.]+)"', found[0].decode()))
            yield name, found[0]
    for name in sorted(sources):
        found = _contents(name, in_site=True)
        assert found is not None, name
        yield name, found[0]
    for name in _ASSETS:
        file = ui.read(name)
        assert file is not None
        yield name, file.body


def _contents(name: str, in_site: bool) -> tuple[bytes, str] | None:
    """Contents and type of a page or file."""
    root = folder()
    if root is None:
        return None
    above = "../" * name.count("/")
    path = (root / name).resolve()
    if name.startswith("source/"):
        path = (_PACKAGE.parent / name.removeprefix("source/").removesuffix(".html")).resolve()
        if path.suffix != ".py" or not path.is_relative_to(_PACKAGE) or not path.is_file():
            return None
        title = str(path.relative_to(_PACKAGE.parent))
        return _page(title, _source(title, path.read_text(), above), above, in_site)
    if path.suffix in (".md", ".html"):
        path = path.with_suffix(".md")
        if not path.is_relative_to(root) or not path.is_file():
            return None
        return _page(*render(path.read_text(), above), above, in_site)
    kind = TYPES.get(path.suffix)
    if kind is None or not path.is_relative_to(root) or not path.is_file():
        return None
    return path.read_bytes(), kind


def _page(title: str, body: str, root: str, in_site: bool) -> tuple[bytes, str]:
    """A page of the site, or of a server: its type, and how it looks, are the same."""
    home, above = (f"{root}../index.html", "Documentation") if in_site else (f"{root}../", "Live")
    assets = root if in_site else f"{root}../"
    title = html.escape(title)
    text = _FRAME.format(title=title, body=body, assets=assets, home=home, above=above, root=root)
    return text.encode(), TYPES[".html"]


def render(text: str, root: str) -> tuple[str, str]:
    """Title and HTML of a page of Markdown. Headings can be linked to as GitHub's can.

    Links to pages become links to their HTML, and names of source files links to these.

    Args:
        root: relative address of the guide's folder.
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
    body = body.replace("<pre>", '<pre tabindex="0">').replace("<table>", '<table tabindex="0">')
    body = re.sub(r'href="([\w./-]+)\.md(#[\w-]*)?"', r'href="\1.html\2"', body)
    link = rf'<a href="{root}source/\1.html"><code>\1</code></a>'
    return title, re.sub(r"<code>(galley/[\w/]+\.py)</code>", link, body)


def _source(name: str, text: str, root: str) -> str:
    """A source file with numbered lines, `#L12` is the twelfth."""
    lines = "".join(
        f'<span id="L{n}"><i>{n}</i>{line}\n</span>'
        for n, line in enumerate(html.escape(text, quote=False).splitlines(), 1)
    )
    script = f'<script type="module" src="{root}guide.js"></script>'
    return f'<h1>{name}</h1>\n<pre class="guide-code" tabindex="0">{lines}</pre>\n{script}'


def anchor(heading: str) -> str:
    """The id of a heading: its words in lower case, joined by dashes."""
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.lower()))
