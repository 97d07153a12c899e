"""`galley collect-env`: prints what a bug report should say about the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from galley.cli.parser import CommandParser

#: Distributions whose versions matter, and those of the extras.
PACKAGES = (
    *("numpy", "tokenizers", "huggingface_hub", "msgspec", "starlette"),
    *("uvicorn", "uvloop", "jinja2", "prometheus-client", "torch", "opentelemetry-sdk"),
)
GIB = 2**30
#: Prefixes of reported variables; secrets are reported without their value.
_TOLD = ("VLLM_", "GALLEY_", "OMP_", "HF_", "LD_PRELOAD", "MALLOC_")
_SECRET = ("KEY", "TOKEN", "HEADERS")


def parser() -> CommandParser:
    return CommandParser(
        "collect-env",
        "Print what a bug report should say of the machine and of the installation; no secrets.",
        [],
        examples=("galley collect-env",),
    )


def main(argv: list[str]) -> int:
    parser().parse(argv)
    for name, value in properties():
        print(f"{name:<22}{value}")
    return 0


def properties() -> Iterator[tuple[str, str]]:
    """Yield name and value of each property."""
    from galley import __version__
    from galley.config.resolve import Machine
    from galley.kernels import _native

    machine = Machine.detect()
    yield "galley", f"{__version__}{_commit()}"
    yield "native kernels", f"{Path(_native.__file__).name}, {_native.isa()}"
    yield "python", f"{sys.version.split()[0]} ({sys.executable})"
    yield "system", f"{platform.platform()}, {_distribution()}"
    yield "processor", processor()
    yield "cores", f"{machine.num_cores} usable of {os.cpu_count()}"
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield "memory", f"{machine.available_memory / GIB:.1f} GiB available of {total / GIB:.1f}"
    for name, what in (("memory.max", "memory limit"), ("cpu.max", "CPU limit")):
        yield what, _first_line(f"/sys/fs/cgroup/{name}")
    yield "huge pages", _first_line("/sys/kernel/mm/transparent_hugepage/enabled")
    for name in PACKAGES:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield name, "not installed"
    for name, value in sorted(os.environ.items()):
        if name.startswith(_TOLD):
            yield name, "***" if any(word in name for word in _SECRET) else value


def processor() -> str:
    """CPU model and the flags that select kernels."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or "unknown"
    model = re.search(r"^model name\s*: (.+)$", text, re.M)
    flags = re.search(r"^flags\s*: (.+)$", text, re.M)
    known = sorted(re.findall(r"\b(?:avx\w*|amx\w*|f16c|fma)\b", flags[1])) if flags else []
    return f"{model[1] if model else platform.machine()} [{' '.join(known)}]"


def _commit() -> str:
    """The commit of a checkout that this is run from."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""
    ask = ("git", "-C", str(root), "rev-parse", "--short", "HEAD")
    try:
        return f", commit {subprocess.check_output(ask, text=True).strip()}"
    except (OSError, subprocess.CalledProcessError):
        return ""


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return "unknown distribution"


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return "unknown"
