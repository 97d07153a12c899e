"""The listening socket, and the private folder of the sockets between the processes."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import tempfile
from pathlib import Path

from galley.engine.control import is_alive
from galley.errors import ConfigError

_PREFIX = "galley"
#: Open files that are enough for any server.
MAX_OPEN_FILES = 65_536


def listening_socket(host: str | None, port: int) -> socket.socket:
    """Bind (not yet listen), so that a port in use is found before anything is loaded.

    Raises:
        ConfigError: the port is taken or may not be bound, or the host is unknown.
    """
    try:
        infos = socket.getaddrinfo(
            host or "0.0.0.0", port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except socket.gaierror as e:
        raise ConfigError(f"--host {host!r} cannot be resolved: {e.strerror}.", field="host") from e
    family, kind, proto, _, address = infos[0]
    sock = socket.socket(family, kind, proto)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
    except OSError as e:
        sock.close()
        hint = " Is another server running? Choose another --port." if e.errno == 98 else ""
        raise ConfigError(
            f"cannot listen on {host or '0.0.0.0'} port {port}: {os.strerror(e.errno or 0)}.{hint}",
            field="port",
        ) from e
    return sock


def unix_socket(path: str) -> socket.socket:
    """Bind a Unix socket (not yet listen); a stale one is replaced.

    Raises:
        ConfigError: another server listens there, or the socket cannot be created.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if Path(path).is_socket():
            if _is_served(path):
                raise ConfigError(f"--uds {path}: another server listens there.", field="uds")
            os.unlink(path)
        sock.bind(path)
    except OSError as e:
        sock.close()
        raise ConfigError(f"--uds {path}: {e.strerror or e}", field="uds") from e
    except ConfigError:
        sock.close()
        raise
    return sock


def _is_served(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def url_of(sock: socket.socket, tls: bool) -> str:
    """The URL of a listening socket."""
    if sock.family == socket.AF_UNIX:
        return f"unix:{sock.getsockname()}"
    host, port = sock.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "localhost"
    if ":" in host:
        host = f"[{host}]"
    return f"{'https' if tls else 'http'}://{host}:{port}"


def allow_many_connections() -> None:
    """Raise the limit of open files of this process and its children as far as allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < target:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))


def private_directory() -> str:
    """Create a folder that only this user can enter; removes those that dead launchers have left.

    It is created in VLLM_RPC_BASE_PATH, by default in the folder of temporary files.
    """
    base = Path(os.environ.get("VLLM_RPC_BASE_PATH") or tempfile.gettempdir())
    if len(str(base)) > 60:
        # The path of a Unix socket has at most 107 bytes.
        base = Path("/tmp")
    prefix = f"{_PREFIX}-{os.getuid()}-"
    for old in base.glob(prefix + "*"):
        pid = old.name.removeprefix(prefix).split("-")[0]
        if pid.isdigit() and not is_alive(int(pid)) and old.stat().st_uid == os.getuid():
            shutil.rmtree(old, ignore_errors=True)
    return tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=base)
