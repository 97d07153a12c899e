"""`galley collect-env`: prints what a bug report should say about the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from galley.cli.parser import CommandParser

#: Distributions whose versions matter, and those of the extras.
PACKAGES = (
    *("numpy", "tokenizers", "huggingface_hub", "msgspec", "starlette"),
    *("uvicorn", "uvloop", "jinja2", "prometheus-client", "torch", "opentelemetry-sdk"),
)
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
    yield "galley", __version__
    yield "native kernels", f"{Path(_native.__file__).name}, {_native.isa()}"
    yield "python", f"{sys.version.split()[0]} ({sys.executable})"
    yield "system", f"{platform.platform()}, libc {' '.join(platform.libc_ver()) or 'unknown'}"
    yield "processor", processor()
    yield "cores", f"{machine.num_cores} usable of {os.cpu_count()}"
    yield "memory available", f"{machine.available_memory / 2**30:.1f} GiB"
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


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return "unknown"
