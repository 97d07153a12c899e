"""The generated tables of docs/security.md: routes with and without a key, and sockets.

The page itself is written by hand; the tables stand between marks.
"""

from __future__ import annotations

import re

from probe import Program

KINDS = {"tcp": "TCP", "tcp6": "TCP", "udp": "UDP", "udp6": "UDP", "unix": "Unix socket"}
PURPOSE = {
    "--port": "the API; `--host` chooses the interface",
    "engine": "engine core ← API servers; folder of mode 0700, removed at the end",
}


def fill(text: str, program: Program) -> str:
    """The page with its tables regenerated."""
    text = _between(text, "routes", routes(program))
    return _between(text, "sockets", sockets(program))


def _between(text: str, mark: str, table: str) -> str:
    pattern = rf"(<!-- {mark}: made by make docs -->\n).*?(<!-- end of {mark} -->)"
    made, count = re.subn(pattern, lambda m: m[1] + table + m[2], text, flags=re.S)
    assert count == 1, f"docs/security.md has no marks for {mark}"
    return made


def routes(program: Program) -> str:
    lines = ["| route | key | available |", "|---|---|---|"]
    for route in sorted(program.plain | program.switched, key=lambda r: r.split(" ")[::-1]):
        there = "always" if route in program.plain else "only when switched on"
        path = route.split(" ")[1]
        guarded = route in program.guarded or path.startswith(
            ("/v1", "/v2", "/inference", "/cohere")
        )
        lines.append(f"| `{route}` | {'needed' if guarded else 'open'} | {there} |")
    return "\n".join(lines) + "\n"


def sockets(program: Program) -> str:
    lines = ["| kind | address | purpose |", "|---|---|---|"]
    for family, where in sorted(program.listening):
        purpose = next((text for word, text in PURPOSE.items() if word in where), "")
        assert purpose, f"a socket without a stated purpose: {family} {where}"
        lines.append(f"| {KINDS[family]} | `{where}` | {purpose} |")
    return "\n".join(lines) + "\n"
