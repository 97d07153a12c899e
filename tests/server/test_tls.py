"""HTTPS with a real certificate (tests/server/tls: self-signed, for 127.0.0.1), checklist 229."""

from __future__ import annotations

import ssl
from pathlib import Path

import httpx
import pytest

from galley.config.server import ServerConfig
from tests.server.served import serve

TLS = Path(__file__).parent / "tls"
CERT, KEY = str(TLS / "cert.pem"), str(TLS / "key.pem")


def client_context(with_certificate: bool = False) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=CERT)
    if with_certificate:
        context.load_cert_chain(CERT, KEY)
    return context


def test_https() -> None:
    with serve(ServerConfig(ssl_certfile=CERT, ssl_keyfile=KEY)) as served:
        url = f"https://127.0.0.1:{served.port}/health"
        assert httpx.get(url, verify=client_context()).status_code == 200
        with pytest.raises(httpx.HTTPError):
            httpx.get(url)
        with pytest.raises(httpx.HTTPError):
            httpx.get(url.replace("https", "http"))
        assert httpx.get(url, verify=client_context()).status_code == 200


def test_client_certificates() -> None:
    config = ServerConfig(ssl_certfile=CERT, ssl_keyfile=KEY, ssl_ca_certs=CERT, ssl_cert_reqs=2)
    with serve(config) as served:
        url = f"https://127.0.0.1:{served.port}/health"
        assert httpx.get(url, verify=client_context(True)).status_code == 200
        with pytest.raises(httpx.HTTPError):
            httpx.get(url, verify=client_context())


def test_ciphers() -> None:
    """Of TLS 1.2 the ciphers that are allowed, and no other."""
    allowed, other = "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-AES128-GCM-SHA256"
    config = ServerConfig(ssl_certfile=CERT, ssl_keyfile=KEY, ssl_ciphers=allowed)

    def knowing(ciphers: str) -> ssl.SSLContext:
        context = client_context()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(ciphers)
        return context

    with serve(config) as served:
        url = f"https://127.0.0.1:{served.port}/health"
        assert httpx.get(url, verify=knowing(allowed)).status_code == 200
        with pytest.raises(httpx.ConnectError):
            httpx.get(url, verify=knowing(other))
