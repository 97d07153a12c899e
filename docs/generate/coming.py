"""The tables of docs/coming-from-vllm.md: what differs from vLLM, of the verdicts of
docs/compatibility/; and the names of the module `vllm` in compat/.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
from collections import Counter
from pathlib import Path

_ROW = re.compile(r"^\| `(.+?)` \| (works|no effect|refused|not yet) \| (.*) \|$", re.M)
COMPAT = Path(__file__).parents[2] / "compat"


def fill(text: str, compatibility: str) -> str:
    """The page with its tables made again; `compatibility` are the pages of all names."""
    for mark, made in (("differences", differences(compatibility)), ("names", table())):
        pattern = rf"(<!-- {mark}: made by make docs -->\n).*?(<!-- end of {mark} -->)"
        text, count = re.subn(pattern, lambda m, made=made: m[1] + made + m[2], text, flags=re.S)
        assert count == 1, f"docs/coming-from-vllm.md has no marks for {mark}"
    return text


def differences(compatibility: str) -> str:
    """What does not work as in vLLM: names of one kind and one reason in a row."""
    grouped: dict[tuple[str, str, str], list[str]] = {}
    counts: Counter[str] = Counter()
    for section in compatibility.split("# vLLM 0.32: ")[1:]:
        title = section.partition("\n")[0].replace("`", "")
        for name, verdict, note in _ROW.findall(section):
            counts[title] += verdict in ("works", "no effect")
            if verdict in ("refused", "not yet"):
                grouped.setdefault((title, verdict, note.strip()), []).append(f"`{name}`")
    lines = ["| | | names | why |", "|---|---|---|---|"]
    for title, count in counts.items():
        lines.append(f"| {title} | accepted | {count} names | |")
        for (kind, verdict, note), names in grouped.items():
            if kind == title:
                lines.append(f"| | {verdict} | {', '.join(names)} | {note} |")
    return "\n".join(lines) + "\n"


def exported() -> set[str]:
    """Names that `from vllm import …` finds."""
    return {name for names in modules().values() for name in names}


def modules() -> dict[str, list[str]]:
    """Module of compat/ → its names that resolve. Raises what a broken name raises."""
    sys.path.insert(0, str(COMPAT))
    try:
        package = importlib.import_module("vllm")
        found = {}
        for name in [
            "vllm",
            *(info.name for info in pkgutil.walk_packages(package.__path__, "vllm.")),
        ]:
            if name.endswith(("._names", ".main")):
                continue
            module = importlib.import_module(name)
            public = [n for n in dir(module) if not n.startswith("_") and is_own(module, n)]
            found[name] = public
        return found
    finally:
        sys.path.remove(str(COMPAT))


def is_own(module: object, name: str) -> bool:
    """Whether the name is offered by the module, and not just used in it."""
    if "__dir__" in vars(module):
        return bool(getattr(module, name) is not None)
    if "__all__" in vars(module):
        return name in vars(module)["__all__"]
    value = getattr(module, name)
    return getattr(value, "__module__", None) == getattr(module, "__name__", "")


def table() -> str:
    found = modules()
    from vllm._names import MISSING  # type: ignore[import-not-found]

    lines = ["| module | names |", "|---|---|"]
    for module, names in found.items():
        if names:
            lines.append(f"| `{module}` | {', '.join(f'`{name}`' for name in names)} |")
    lines += [
        "",
        "No counterpart; using one raises with the reason:",
        "",
        "| name | |",
        "|---|---|",
    ]
    lines += [f"| `{name}` | {reason} |" for name, reason in MISSING.items()]
    return "\n".join(lines) + "\n"
