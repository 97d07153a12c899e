"""The kernels of benchmarks/csrc, which no build of the gate has, fit those that they are measured
with."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("x86", [0, 1])
def test_they_compile(x86: int) -> None:
    flags = ["-std=gnu++17", "-fsyntax-only", f"-DGALLEY_HAS_X86={x86}"]
    flags += ["-DGALLEY_BENCHMARK_VARIANTS", f"-I{ROOT / 'csrc'}"]
    source = ROOT / "benchmarks" / "csrc" / "split.cpp"
    done = subprocess.run(["c++", *flags, source], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
