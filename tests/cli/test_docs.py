"""`galley docs` and /docs-site: files of a built site, or an error that says how to build it."""

from __future__ import annotations

import threading
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from galley.cli import docs
from galley.cli.main import main
from galley.server import documentation


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "index.html").write_text("<h1>Galley</h1>")
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "quickstart.html").write_text("<h1>Quickstart</h1>")
    monkeypatch.setattr(docs, "SITE", tmp_path)
    monkeypatch.setattr(documentation, "SITE", tmp_path)
    return tmp_path


def test_it_is_served_on_the_loopback_interface(site: Path) -> None:
    with docs.site_server(site, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert "Galley" in httpx.get(url + "/").text
        assert "Quickstart" in httpx.get(url + "/start/quickstart.html").text
        assert httpx.get(url + "/nothing.html").status_code == 404
        assert server.server_address[0] == "127.0.0.1"
        server.shutdown()


def test_a_server_has_it_where_it_is_built(site: Path) -> None:
    client = TestClient(Starlette(routes=documentation.site()))
    assert "Galley" in client.get("/docs-site/").text
    assert "Quickstart" in client.get("/docs-site/start/quickstart.html").text


def test_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(docs, "SITE", tmp_path)
    monkeypatch.setattr(documentation, "SITE", tmp_path)
    assert main(["docs", "--port", "0"]) == 2
    assert "make docs-site" in capsys.readouterr().err
    assert documentation.site() == []
