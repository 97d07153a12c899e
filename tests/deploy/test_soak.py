"""A short piece of `make soak` and of `make symptoms`: the long ones need minutes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.small_model import small_model

pytestmark = pytest.mark.alone
ROOT = Path(__file__).parents[2]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


def test_a_full_server_with_clients_that_misbehave() -> None:
    """Blocks all free at the end, every request ended, no error in the log."""
    # In seconds memory has no slope: caches fill.
    short = ("--minutes", "0.05", "--slope", "10000", "--model", str(small_model()))
    done = run("benchmarks.soak", "--clients", "16", *short)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_symptom_and_its_remedy() -> None:
    """Checklist 214, 260: repeated prompts are slow without prefix caching, and fast with it."""
    done = run("benchmarks.symptoms", "--only", "prefix", "--dry")
    assert done.returncode == 0, done.stdout + done.stderr
