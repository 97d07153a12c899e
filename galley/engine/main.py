"""An engine process from start to end: bind, load, serve."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from galley.config import EngineConfig
from galley.engine.control import Bound, Channel, Serving
from galley.engine.frames import FrameServer
from galley.engine.heartbeat import StatusFile
from galley.engine.persistent_kv import KVFiles
from galley.engine.process import EngineProcess
from galley.messages import Ready

if TYPE_CHECKING:
    from galley.engine.core import Core

#: Arrivals between two steps that fit into the status file.
ARRIVALS = 65_536


class EngineSpec(msgspec.Struct, frozen=True):
    """The identity of an engine process, and where it listens.

    Attributes:
        address: see `FrameServer`.
        status_path: file of the status recorder.
        kv_files: memory for a KV cache that outlives the engine.
        adapters: folder of packed adapters.
    """

    index: int
    epoch: int
    address: str
    status_path: str
    kv_files: KVFiles | None = None
    adapters: Path | None = None


def run(
    spec: EngineSpec,
    config: EngineConfig,
    channel: Channel,
    load: Callable[[EngineConfig, EngineSpec], tuple[Core, Ready]],
    make_process: type[EngineProcess] = EngineProcess,
) -> None:
    """Run an engine process: bind, load, serve. Exceptions of `load` are left to the caller."""
    clients = FrameServer(spec.address)
    channel.send(Bound(clients.address))
    core, ready = load(config, spec)
    rows = config.scheduler.max_num_seqs or 0
    status = StatusFile(spec.status_path, rows + ARRIVALS)
    core.executor.rpc("set_heartbeat", spec.status_path)
    process = make_process(core, clients, channel, ready, status)
    # Objects made in start-up are permanent: no collection needs to visit them again.
    gc.collect()
    gc.freeze()
    gc.enable()
    channel.send(Serving())
    try:
        process.run()
    finally:
        clients.close()
        core.shutdown()
