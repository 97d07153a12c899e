"""Set-up of every run: caches of its own, not those of the user's home."""

from __future__ import annotations

import functools
import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from httpx._transports import default as httpx_transport
from hypothesis import HealthCheck, settings

# Compile test modules and the programs that tests start once, not at every start.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Each client would read all certificates of the machine, which takes longer than most tests.
httpx_transport.create_ssl_context = functools.cache(httpx_transport.create_ssl_context)

# Workers beside each other have a core each.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples in every run, and no clock: a busy machine is no failure, pytest-timeout finds
# what hangs. `HYPOTHESIS_PROFILE=default` draws new examples.
STEADY = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile("steady", deadline=None, derandomize=True, suppress_health_check=STEADY)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """`-m alone` reads only the files that have such tests."""
    is_left_out = (
        config.option.markexpr == "alone"
        and collection_path.suffix == ".py"
        and "mark.alone" not in collection_path.read_text()
    )
    return is_left_out or None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Modules and items stay to the end: Python's collector need not visit them."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # what is left at the end counts as a leak of native objects


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
def one_tokenizer_a_file() -> Iterator[None]:
    """Engines in this process share the tokenizer of a GGUF file: to load it takes longer than to
    make a small engine."""
    from galley import llm, text  # with numpy, which reads OMP_NUM_THREADS when it is imported

    load = text.load_tokenizer
    of_file = functools.cache(lambda path, changed: load(path))

    def load_once(path: Path) -> text.Tokenizer:
        return of_file(path, path.stat().st_mtime_ns) if path.is_file() else load(path)

    with pytest.MonkeyPatch.context() as patch:
        for module in (text, llm):
            patch.setattr(module, "load_tokenizer", load_once)
        yield


@pytest.fixture(autouse=True, scope="session")
def interrupts():
    """A shell's background job ignores SIGINT, and so would every program that a test starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
