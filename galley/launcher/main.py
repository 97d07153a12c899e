"""`launch`: bind the port, then keep engine core and API servers alive until a signal."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path

from galley.config import EngineConfig
from galley.config.resolve import served_name
from galley.config.server import ServerConfig
from galley.engine.control import ADAPTERS, Channel
from galley.engine.faults import Faults, faulty_loader, faulty_process, read_faults
from galley.engine.heartbeat import StatusReader, status_file_path
from galley.engine.persistent_kv import KVFiles
from galley.launcher.child import prefer_for_oom_kill, set_title
from galley.launcher.sockets import (
    allow_many_connections,
    listening_socket,
    private_directory,
    unix_socket,
    url_of,
)
from galley.launcher.supervisor import Entries, Policy, Supervisor, say
from galley.observability.registry import VARIABLE, prepare_folder, sweep


def launch(
    config: EngineConfig,
    server: ServerConfig,
    sources: Mapping[str, str],
    renders_only: bool = False,
    is_private: bool = False,
) -> int:
    """Serve until a signal; returns the exit code.

    Args:
        sources: where the values that were given came from, by name of the flag.
        renders_only: start no engine: prompts are rendered, and nothing is generated.
        is_private: only the process that started it knows the address: it is not logged.

    Raises:
        ConfigError: the address cannot be bound.
    """
    os.environ.update(server.logging_environment())
    # numpy's threads for matrix products spin for a while at every import: on cores that are busy
    # with the start, in two processes that need none.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    allow_many_connections()
    sock = unix_socket(server.uds) if server.uds else listening_socket(server.host, server.port)
    label = f" {server.uds or f':{sock.getsockname()[1]}'} {served_name(config.model)}"
    set_title(f"Galley::Launcher{label}")
    directory = private_directory()
    metrics = _share_metrics(server, directory)
    policy = Policy(
        num_engines=0 if renders_only else 1,
        num_servers=server.api_server_count,
        max_restarts=server.max_engine_restarts,
        step_timeout=server.engine_step_timeout,
        drain=float(server.shutdown_timeout),
        label=label,
    )
    url = url_of(sock, tls=server.ssl_certfile is not None)

    def up() -> None:
        if is_private:
            return
        # Scripts written for vLLM wait for this line, which comes from uvicorn there.
        say("Application startup complete.", always=True)
        say(f"serving at {url}{exposure(server)}")

    try:
        entries = _entries(config, server, sources, sock, directory, renders_only)
        return Supervisor(entries, policy, up).run()
    finally:
        sock.close()
        if server.uds:
            Path(server.uds).unlink(missing_ok=True)
        shutil.rmtree(directory, ignore_errors=True)
        if metrics is not None:
            sweep(metrics)


def exposure(server: ServerConfig) -> str:
    """A remark if others can reach the server: it listens on all interfaces."""
    if server.uds or server.host not in (None, "", "0.0.0.0", "::"):
        return ""
    key = "" if server.api_key else ", without an API key: see --host 127.0.0.1 and --api-key"
    return f" (on all interfaces{key})"


def _share_metrics(server: ServerConfig, directory: str) -> str | None:
    """Create a folder for the metrics of several API servers; returns it, None with one server.

    PROMETHEUS_MULTIPROC_DIR is honoured.
    """
    folder = os.environ.get(VARIABLE)
    if not folder and server.api_server_count > 1:
        folder = os.environ[VARIABLE] = f"{directory}/metrics"
    if folder:
        prepare_folder(folder)
    return folder


def _entries(
    config: EngineConfig,
    server: ServerConfig,
    sources: Mapping[str, str],
    sock: socket.socket,
    directory: str,
    renders_only: bool,
) -> Entries:
    """Entry points of the children; they import heavy modules once they are forked.

    Raises ConfigError for faults that are not allowed.
    """
    faults = read_faults()
    if faults:
        say("injected faults: " + ", ".join(fault.text for fault in faults))

    kv_files = KVFiles.make() if config.cache.keep_kv_cache and not renders_only else None
    status = status_file_path(f"{directory}/status")

    def status_path(index: int) -> str:
        assert index == 0, "one engine for now"
        return status

    def discard(index: int) -> None:
        if kv_files is not None:
            kv_files.discard()

    def engine(channel: Channel, index: int, epoch: int) -> None:
        sock.close()
        prefer_for_oom_kill()
        from galley.observability.logging import configure_logging

        configure_logging()
        fetch_once(config, directory)
        from galley.engine.assembly import load_engine
        from galley.engine.main import EngineSpec, run

        address = f"ipc://{directory}/engine-{index}-{epoch}"
        spec = EngineSpec(
            index, epoch, address, status_path(index), kv_files, Path(directory, ADAPTERS)
        )
        if faults:
            mine = Faults(faults, epoch)
            run(spec, config, channel, faulty_loader(load_engine, mine), faulty_process(mine))
        else:
            run(spec, config, channel, load_engine)

    def api_server(channel: Channel, client_index: int) -> None:
        if kv_files is not None:
            kv_files.close()
        fetch_once(config, directory)
        from galley.frontend.remote_client import LauncherLink
        from galley.server.main import run

        own = LauncherLink(channel, client_index, directory)
        run(sock, own, config, server, sources, renders_only)

    return Entries(
        engine,
        api_server,
        lambda index: StatusReader(status_path(index)),
        discard,
    )


def fetch_once(config: EngineConfig, directory: str) -> None:
    """Download a hub model in the first child that gets here, with one progress bar; the others
    wait and then find it in the cache.
    """
    if not config.model.model or Path(config.model.model).expanduser().exists():
        return
    from galley.loader import resolve_source

    with open(f"{directory}/download.lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        resolve_source(config.model, config.load)
