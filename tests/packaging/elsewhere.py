"""An environment of its own that holds a wheel and what the wheel says it needs, and no more.

Nothing is downloaded: the distributions are those of this environment, linked one by one.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def closure(requirements: Iterable[str]) -> set[str]:
    """Names of the distributions that these requirements bring, extras apart."""
    found: set[str] = set()
    waiting = [(Requirement(r), "") for r in requirements]
    while waiting:
        requirement, extra = waiting.pop()
        environment = {**default_environment(), "extra": extra}
        if requirement.marker is not None and not requirement.marker.evaluate(environment):
            continue
        name = canonicalize_name(requirement.name)
        version = importlib.metadata.version(name)
        assert requirement.specifier.contains(version, prereleases=True), (requirement, version)
        for wanted in requirement.extras or {""}:
            if f"{name}[{wanted}]" not in found:
                found.add(f"{name}[{wanted}]")
                needs = importlib.metadata.requires(name) or ()
                waiting += [(Requirement(need), wanted) for need in needs]
    return {name.partition("[")[0] for name in found}


def environment(folder: Path, wheel: Path, others: Iterable[str] = ()) -> Path:
    """Make the environment; returns its `bin`.

    Args:
        others: distributions to have beside what the wheel needs.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    [site] = folder.glob("lib/python3*/site-packages")
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin/python"), "install"]
    subprocess.run([*pip, "-q", "--no-deps", "--no-index", str(wheel)], check=True)
    [info] = site.glob("galley_llm-*.dist-info")
    metadata = importlib.metadata.Distribution.at(info)
    for name in closure(metadata.requires or ()) | set(others):
        distribution = importlib.metadata.distribution(name)
        tops = {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}
        for top in tops:
            if not (site / top).exists():
                (site / top).symlink_to(distribution.locate_file(top))
    return folder / "bin"
