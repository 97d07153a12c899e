"""The listening socket's errors are sentences; the private folder is private and swept."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from galley.errors import ConfigError
from galley.launcher.sockets import listening_socket, private_directory, unix_socket, url_of


def test_a_free_port_is_bound_but_does_not_listen_yet() -> None:
    with listening_socket("127.0.0.1", 0) as sock:
        host, port = sock.getsockname()
        assert port != 0
        assert url_of(sock, tls=False) == f"http://127.0.0.1:{port}"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, port))


def test_all_interfaces_are_called_localhost() -> None:
    with listening_socket(None, 0) as sock:
        assert url_of(sock, tls=True) == f"https://localhost:{sock.getsockname()[1]}"


def test_a_port_in_use_is_one_sentence() -> None:
    with listening_socket("127.0.0.1", 0) as first:
        first.listen()
        port = first.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port}: Address already in use") as error:
            listening_socket("127.0.0.1", port)
        assert error.value.field == "port"


def test_an_unknown_host_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match="cannot be resolved") as error:
        listening_socket("no.such.host.invalid", 0)
    assert error.value.field == "host"


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A temporary folder with a name short enough for sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def test_the_folder_is_private_and_stale_ones_are_removed(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(short_path))
    uid = os.getuid()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead = short_path / f"galley-{uid}-{gone.pid}-x"
    alive = short_path / f"galley-{uid}-{os.getpid()}-x"
    other = short_path / "galley-other"
    for folder in (dead, alive, other):
        folder.mkdir()
    made = Path(private_directory())
    assert made.parent == short_path
    assert made.stat().st_mode & 0o777 == 0o700
    assert not dead.exists()
    assert alive.exists()
    assert other.exists()


def test_the_folder_is_created_in_the_given_base(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as base:
        monkeypatch.setenv("VLLM_RPC_BASE_PATH", base)
        assert Path(private_directory()).parent == Path(base)


def test_a_long_temporary_folder_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name of a Unix socket has at most 107 bytes."""
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    made = Path(private_directory())
    try:
        assert len(str(made / "engine-10-1000000")) < 107
    finally:
        made.rmdir()


def test_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with unix_socket(path) as sock:
        assert url_of(sock, tls=False) == f"unix:{path}"
        sock.listen()
        with pytest.raises(ConfigError, match="another server listens"):
            unix_socket(path)
    # One that was left behind is replaced.
    with unix_socket(path):
        pass
    (tmp_path / "file").write_text("mine")
    for bad in (tmp_path / "file", tmp_path / "nowhere" / "s", tmp_path / ("long" * 40)):
        with pytest.raises(ConfigError, match="--uds") as error:
            unix_socket(str(bad))
        assert error.value.field == "uds"
    assert (tmp_path / "file").read_text() == "mine"
