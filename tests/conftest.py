"""What every test needs: caches of its own run, not of the user's home."""

from __future__ import annotations

import os
import signal

import pytest


@pytest.fixture(autouse=True, scope="session")
def cache_folder(tmp_path_factory):
    """Packed weights go to a folder of this run; servers that tests start inherit it."""
    before = os.environ.get("GALLEY_CACHE_DIR")
    os.environ["GALLEY_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["GALLEY_CACHE_DIR"]
    else:
        os.environ["GALLEY_CACHE_DIR"] = before


@pytest.fixture(autouse=True, scope="session")
def interrupts():
    """A shell's background job ignores SIGINT, and so would every program that a test starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
