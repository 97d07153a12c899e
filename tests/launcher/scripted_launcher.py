"""A launcher with scripted children, as a process: `python -m tests.launcher.scripted_launcher`.

The engine is `tests.frontend.scripted`; the API server answers one JSON line with lines of text:

    → {"prompt": "hello", "n": 20}        ← {"text": "ab", "done": false}
                                          ← {"text": "c", "done": true, "reason": "length"}
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import time
from typing import Any

from galley.config import EngineConfig
from galley.engine.control import Channel, Serving
from galley.engine.heartbeat import StatusReader
from galley.engine.main import EngineSpec, run
from galley.errors import ConfigError, GalleyError
from galley.frontend.input_processor import InputProcessor, Limits
from galley.frontend.output_processor import OutputProcessor
from galley.frontend.remote_client import LauncherLink, RemoteClient
from galley.launcher import supervisor
from galley.launcher.child import set_title
from galley.launcher.sockets import listening_socket, private_directory, url_of
from galley.launcher.supervisor import Entries, Policy, Supervisor
from galley.messages import Ready
from galley.request import RequestOutputKind, SamplingParams
from tests.frontend.scripted import LetterTokenizer, Row, ScriptedCore

#: Seconds from SIGTERM to SIGKILL where a server drains, so that it takes longer than that.
GRACE_WHILE_DRAINING = 0.2


def load(fault: str) -> Any:
    """A loader of scripted cores with one fault built in."""

    def crash_on_poison(epoch: int, rows: list[Row]) -> None:
        for row in rows:
            if len(row.history) != 20:
                continue
            prompt = bytes(row.prompt).decode()
            if prompt == "poison":
                os.kill(os.getpid(), signal.SIGSEGV)
            if prompt == "tar pit" or (prompt == "hangs once" and epoch == 1):
                time.sleep(1000)
            if prompt == "stopped":
                os.kill(os.getpid(), signal.SIGSTOP)

    def loader(config: EngineConfig, spec: EngineSpec) -> tuple[ScriptedCore, Ready]:
        if fault == "no-model":
            raise ConfigError("no such model: try another")
        if fault == "bug":
            raise RuntimeError("the loader has a bug")
        if fault == "second-start-fails" and spec.epoch > 1:
            raise MemoryError("no room any more")
        if fault == "dies-stepping" and spec.epoch > 1:
            return ScriptedCore(spec.epoch, on_step=lambda rows: os.kill(os.getpid(), 9)), Ready(
                spec.index, spec.epoch, 1000, 9, 16, True
            )
        if fault == "dies-starting" and spec.epoch < 3:
            os.kill(os.getpid(), signal.SIGKILL)
        core = ScriptedCore(
            spec.epoch, pause=0.002, on_step=lambda rows: crash_on_poison(spec.epoch, rows)
        )
        return core, Ready(spec.index, spec.epoch, 1000, 9, 16, True)

    return loader


async def serve(sock: Any, link: LauncherLink, fault: str) -> None:
    tokenizer = LetterTokenizer()
    client = RemoteClient(
        link,
        InputProcessor(Limits(128, 1000), tokenizer, client_index=link.client_index),
        OutputProcessor(tokenizer),
    )
    client.start()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ask = json.loads(await reader.readline())
        params = SamplingParams(max_tokens=ask["n"], output_kind=RequestOutputKind.DELTA)
        try:
            async for output in client.generate(ask["prompt"], params, "r"):
                part = output.outputs[0]
                line = {"text": part.text, "done": output.finished, "reason": part.finish_reason}
                writer.write(json.dumps(line).encode() + b"\n")
                await writer.drain()
        except GalleyError as e:
            line = {"text": "", "done": True, "reason": e.message}
            writer.write(json.dumps(line).encode() + b"\n")
        writer.close()

    server = await asyncio.start_server(answer, sock=sock)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, (lambda: None) if fault == "stubborn" else stop.set)
    link.channel.send(Serving())
    await stop.wait()
    if fault == "drains":
        await asyncio.sleep(3 * GRACE_WHILE_DRAINING)
        print("drained", file=sys.stderr)
    server.close()
    client.close()


def main(fault: str) -> int:
    if fault == "drains":
        supervisor.GRACE = GRACE_WHILE_DRAINING
    set_title("Galley::Launcher")
    sock = listening_socket("127.0.0.1", 0)
    directory = private_directory()

    def engine(channel: Channel, index: int, epoch: int) -> None:
        address = f"ipc://{directory}/engine-{index}-{epoch}"
        spec = EngineSpec(index, epoch, address, f"{directory}/status-{index}")
        run(spec, EngineConfig(), channel, load(fault))

    def server(channel: Channel, client_index: int) -> None:
        if fault == "no-model":
            raise ConfigError("no such model: try another")
        if fault == "slow-server":
            time.sleep(0.5)
        link = LauncherLink(channel, client_index, directory)
        asyncio.run(serve(sock, link, fault))

    entries = Entries(
        engine,
        server,
        lambda index: StatusReader(f"{directory}/status-{index}"),
        lambda index: None,
    )
    policy = Policy(
        num_servers=2 if fault == "two-servers" else 1,
        step_timeout=1.5 if fault == "impatient" else 60.0,
        drain=60.0 if fault in ("stubborn", "drains") else 0.0,
    )

    def announce() -> None:
        print(f"serving at {url_of(sock, tls=False)} {directory}", flush=True)

    try:
        return Supervisor(entries, policy, announce).run()
    finally:
        sock.close()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
