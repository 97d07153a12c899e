"""Certificates that are replaced while the server runs (checklist 229)."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import httpx
import pytest

from galley.config.server import ServerConfig
from galley.errors import ConfigError
from galley.server.certificates import Certificates
from tests.server.served import serve
from tests.server.test_tls import CERT, KEY


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A new self-signed one for 127.0.0.1, and its key."""
    certificate, key = folder / "new.pem", folder / "new-key.pem"
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    names = ["-subj", "/CN=new", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", *kind, *files, *names]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


def test_new_connections_get_the_new_one(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    shutil.copy(CERT, certificate)
    shutil.copy(KEY, key)
    config = ServerConfig(
        ssl_certfile=str(certificate), ssl_keyfile=str(key), enable_ssl_refresh=True
    )
    with serve(config) as served:
        url = f"https://127.0.0.1:{served.port}/health"
        context = served.listener.config.ssl
        assert context is not None
        files = Certificates(context, config)

        def is_served(authority: str) -> bool:
            try:
                trusting = ssl.create_default_context(cafile=authority)
                return httpx.get(url, verify=trusting).status_code == 200
            except httpx.ConnectError:
                return False

        assert is_served(CERT)
        new_certificate, new_key = make_certificate(tmp_path)
        # Half of a pair cannot be used: the old pair stays until both are there.
        shutil.copy(new_certificate, certificate)
        files.reload_if_changed()
        assert is_served(CERT)
        shutil.copy(new_key, key)
        files.reload_if_changed()
        assert is_served(str(new_certificate))
        assert not is_served(CERT)
        key.unlink()
        files.reload_if_changed()
        assert is_served(str(new_certificate))


def test_it_needs_a_certificate() -> None:
    with pytest.raises(ConfigError, match="--ssl-certfile"):
        ServerConfig(enable_ssl_refresh=True)
