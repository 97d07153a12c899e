"""The life of an engine process: bind, load, serve."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass

import zmq

from galley.config import EngineConfig
from galley.engine.control import Bound, Channel, Serving
from galley.engine.flight import FlightRecorder
from galley.engine.kept import KeptFiles
from galley.engine.messages import Ready
from galley.engine.process import Core, EngineProcess

#: Arrivals between two steps that the flight recorder has room for.
ARRIVALS = 65_536


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """Which engine this process is, and where it listens.

    Attributes:
        address: ZMQ address to bind; a TCP port of `*` takes a free one.
        flight_path: file of the flight recorder.
        kept: memory for a KV cache that outlives the engine.
    """

    index: int
    epoch: int
    address: str
    flight_path: str
    kept: KeptFiles | None = None


def bind(address: str) -> tuple[zmq.Socket[bytes], str]:
    """A ROUTER socket on `address`, and the address that was really bound."""
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
    # Outputs are bounded by the requests in flight and must never be dropped.
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.LINGER, 0)
    socket.bind(address)
    bound = socket.getsockopt(zmq.LAST_ENDPOINT)
    assert isinstance(bound, bytes)
    return socket, bound.decode().rstrip("\0")


def run(
    spec: EngineSpec,
    config: EngineConfig,
    channel: Channel,
    load: Callable[[EngineConfig, EngineSpec], tuple[Core, Ready]],
    make_process: type[EngineProcess] = EngineProcess,
) -> None:
    """The life of an engine process: bind, load, serve. What `load` raises, the caller reports."""
    socket, address = bind(spec.address)
    channel.send(Bound(address))
    core, ready = load(config, spec)
    rows = config.scheduler.max_num_seqs or 0
    flight = FlightRecorder(spec.flight_path, rows + ARRIVALS)
    core.executor.rpc("show_pulse", spec.flight_path)
    process = make_process(core, socket, channel, ready, flight)
    # What start-up has made stays for good: no collection need look at it again.
    gc.collect()
    gc.freeze()
    channel.send(Serving())
    try:
        process.run()
    finally:
        core.shutdown()
