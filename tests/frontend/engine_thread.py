"""A scripted engine behind real ZMQ sockets, in a thread, that a test can kill and replace."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import zmq

from galley.engine.control import Channel, EngineDown, EngineUp
from galley.engine.faults import Faults, faulty_process, read_faults
from galley.engine.flight import FlightRecorder
from galley.engine.main import bind
from galley.engine.messages import Ready
from galley.engine.process import EngineProcess
from tests.frontend.scripted import ScriptedCore


class EngineThread:
    """One incarnation. `kill` ends it without a word to its clients.

    Args:
        faults: what happens to it (galley.engine.faults).
        core: arguments of `ScriptedCore`.
    """

    def __init__(
        self, folder: Path, epoch: int = 1, index: int = 0, faults: str = "", **core: Any
    ) -> None:
        self.core = ScriptedCore(epoch, **core)
        self.index, self.epoch = index, epoch
        self.socket, self.address = bind(f"ipc://{folder}/engine-{index}-{epoch}")
        self.ours, theirs = Channel.pair()
        ready = Ready(
            index, epoch, max_model_len=1000, num_blocks=9, block_size=16, batch_invariant=True
        )
        flight = FlightRecorder(str(folder / "flight"), 1000)
        asked = read_faults({"GALLEY_FAULTS": faults, "GALLEY_DEV_MODE": "1"})
        make = faulty_process(Faults(asked, epoch)) if asked else EngineProcess
        self.process = make(self.core, self.socket, theirs, ready, flight)
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> EngineThread:
        self.thread.start()
        return self

    def _run(self) -> None:
        try:
            self.process.run()
        except BaseException as e:
            self.error = e
        finally:
            self.socket.close()

    @property
    def up(self) -> EngineUp:
        return EngineUp(self.index, self.epoch, self.address)

    def down(self, crashed: bool = False, rows: list[tuple[int, int]] | None = None) -> EngineDown:
        return EngineDown(self.index, self.epoch, crashed, rows or [])

    def kill(self) -> None:
        """Its launcher's end of the channel is gone: it leaves its loop and closes its socket."""
        self.ours.close()
        self.thread.join(60)
        assert not self.thread.is_alive()


def dealer(address: str, client: int = 0) -> zmq.Socket[bytes]:
    """A client's socket, as `ZmqClient` makes it."""
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    socket.setsockopt(zmq.ROUTING_ID, b"c%d" % client)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RCVTIMEO, 60_000)
    socket.connect(address)
    return socket
