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
MANY = 65_536


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
    """Bind a Unix socket (not yet listen); one that nobody listens on any more is replaced.

    Raises:
        ConfigError: somebody listens there, or no socket can be made there.
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
    """What a person types to reach the socket."""
    if sock.family == socket.AF_UNIX:
        return f"unix:{sock.getsockname()}"
    host, port = sock.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "localhost"
    if ":" in host:
        host = f"[{host}]"
    return f"{'https' if tls else 'http'}://{host}:{port}"


def allow_many_connections() -> None:
    """Raise the limit of open files, of this process and its children, as far as it may go."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MANY if hard == resource.RLIM_INFINITY else min(hard, MANY)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def private_directory() -> str:
    """A new folder that only this user can enter; removes those that dead launchers left.

    It lies in VLLM_RPC_BASE_PATH, or among temporary files.
    """
    base = Path(os.environ.get("VLLM_RPC_BASE_PATH") or tempfile.gettempdir())
    if len(str(base)) > 60:
        # The name of a Unix socket has at most 107 bytes.
        base = Path("/tmp")
    prefix = f"{_PREFIX}-{os.getuid()}-"
    for old in base.glob(prefix + "*"):
        pid = old.name.removeprefix(prefix).split("-")[0]
        if pid.isdigit() and not is_alive(int(pid)) and old.stat().st_uid == os.getuid():
            shutil.rmtree(old, ignore_errors=True)
    return tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=base)
