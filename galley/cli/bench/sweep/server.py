"""Starts and stops a server under measurement."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from galley.cli.bench.endpoint import Endpoint
from galley.cli.bench.startup import end, free_port
from galley.cli.bench.sweep.params import Settings, apply, command_of, option_of
from galley.errors import ServerError

#: Routes that clear caches between runs; a server in development mode has some of them.
_RESETS = ("/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache")


@dataclass(frozen=True)
class Server:
    """A running server."""

    port: int
    endpoint: Endpoint

    def clear_caches(self) -> None:
        """Clear the server's caches, so that runs are independent."""
        for path in _RESETS:
            self.endpoint.post(path)


@contextmanager
def served(
    command: str, settings: Settings, timeout: float, show: bool = False
) -> Iterator[Server]:
    """Run a server with these settings, on the port in its command, else on a free port.

    Raises:
        ServerError: the server ends, or does not answer within `timeout` seconds.
    """
    whole, port = on_port(apply(settings, command_of(command)))
    print(f"galley: {shlex.join(whole)}", file=sys.stderr)
    out = None if show else subprocess.DEVNULL
    environment = {**os.environ, "VLLM_SERVER_DEV_MODE": "1"}
    process = subprocess.Popen(whole, stdout=out, stderr=out, env=environment)
    try:
        endpoint = Endpoint(f"http://127.0.0.1:{port}", {})
        wait(process, endpoint, timeout)
        yield Server(port, endpoint)
    finally:
        if process.poll() is None:
            end(process)


def on_port(command: Sequence[str]) -> tuple[list[str], int]:
    port_option = option_of(command, "-p", "--port")
    if port_option is not None:
        return list(command), int(port_option)
    port = free_port()
    return [*command, "--port", str(port)], port


def wait(process: subprocess.Popen[bytes], endpoint: Endpoint, timeout: float) -> None:
    """Wait until the server lists its models. Raises ServerError."""
    give_up = time.monotonic() + timeout
    while True:
        try:
            endpoint.served(0)
            return
        except ServerError:
            if process.poll() is not None:
                raise ServerError(f"the server ended with {process.returncode}.") from None
            if time.monotonic() > give_up:
                raise
        time.sleep(0.1)
