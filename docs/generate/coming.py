"""The table of docs/coming-from-vllm.md: the names of the module `vllm` in compat/."""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
from pathlib import Path

COMPAT = Path(__file__).parents[2] / "compat"


def fill(text: str) -> str:
    """The page with its table made again."""
    pattern = r"(<!-- names: made by make docs -->\n).*?(<!-- end of names -->)"
    text, count = re.subn(pattern, lambda m: m[1] + table() + m[2], text, flags=re.S)
    assert count == 1, "docs/coming-from-vllm.md has no marks for names"
    return text


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
