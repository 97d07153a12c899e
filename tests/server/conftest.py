"""Servers over fake engines, one a module: starting one takes longer than a test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.served import Served, serve


@pytest.fixture(scope="module")
def running() -> Iterator[Served]:
    with serve() as server:
        yield server


@pytest.fixture
def served(running: Served) -> Iterator[Served]:
    """The module's server, as new."""
    engine = running.engine
    engine.seen.clear()
    engine.aborted.clear()
    script, engine.pause, engine.hold, engine.down, engine.failure = (
        engine.script,
        0.0,
        False,
        None,
        None,
    )
    yield running
    engine.script, engine.hold, engine.down, engine.failure = script, False, None, None
