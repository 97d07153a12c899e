"""Optional extras: how to install what one of them needs."""

from __future__ import annotations

import sys

PACKAGE = "galley-llm"


def install_command(extra: str) -> str:
    """The pip command that installs the packages of `extra` for the running interpreter.

    It names the packages themselves, so that it works in a checkout too, where `galley-llm` is not
    on the package index. A name that is no extra is taken for a package.
    """
    import importlib.metadata  # both are only needed for an error, and slow to import
    import shlex

    marker = f'extra == "{extra}"'
    requirements = importlib.metadata.requires(PACKAGE) or []
    packages = [r.split(";")[0].strip() for r in requirements if marker in r.replace("'", '"')]
    return shlex.join([sys.executable, "-m", "pip", "install", *(packages or [extra])])
