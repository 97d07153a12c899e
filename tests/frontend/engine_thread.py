"""A scripted engine behind real sockets, in a thread, that a test can kill and replace."""

from __future__ import annotations

import select
import threading
from pathlib import Path
from typing import Any

from galley.engine.control import Channel, EngineDown, EngineUp
from galley.engine.faults import Faults, faulty_process, read_faults
from galley.engine.frames import FrameServer, connect
from galley.engine.heartbeat import StatusFile
from galley.engine.process import EngineProcess
from galley.messages import Ready
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
        self.clients = FrameServer(f"ipc://{folder}/engine-{index}-{epoch}")
        self.address = self.clients.address
        self.ours, theirs = Channel.pair()
        ready = Ready(
            index, epoch, max_model_len=1000, num_blocks=9, block_size=16, batch_invariant=True
        )
        status = StatusFile(str(folder / "status"), 1000)
        asked = read_faults({"GALLEY_FAULTS": faults, "GALLEY_DEV_MODE": "1"})
        make = faulty_process(Faults(asked, epoch)) if asked else EngineProcess
        self.process = make(self.core, self.clients, theirs, ready, status)
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
            self.clients.close()

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


class BlockingClient:
    """A client's end of a connection, for a thread that may block."""

    def __init__(self, address: str, client: int = 0) -> None:
        self.socket = connect(address, client)
        self._payloads: list[bytes] = []

    def send(self, payload: bytes) -> None:
        self.socket.send(payload)
        while self.socket.unsent:
            assert select.select([], [self.socket], [], 60)[1]
            self.socket.flush()

    def receive(self) -> bytes:
        """The next payload. Raises EOFError once the engine has closed the connection."""
        while not self._payloads:
            assert select.select([self.socket], [], [], 60)[0], "nothing has arrived"
            self._payloads += self.socket.receive()
        return self._payloads.pop(0)

    def close(self) -> None:
        self.socket.close()
