"""`galley replay`: the pages over a recording, and files that are none."""

from __future__ import annotations

import json
import threading
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from galley.cli.main import main
from galley.cli.replay import Handler, read_recording


def test_a_recording_is_served(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"traceEvents": [], "galley": {"format": 1, "frames": []}}))
    handler = partial(Handler, path.name, read_recording(path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with httpx.Client(base_url=f"http://127.0.0.1:{server.server_port}") as client:
            assert client.get("/").headers["location"] == "/ui/"
            page = client.get("/ui/")
            assert "default-src 'none'" in page.headers["content-security-policy"]
            assert client.get("/ui/live.js").status_code == 200
            assert client.get("/ui/api/server").json()["recording"] == "run.json"
            assert client.get("/ui/api/recording").content == path.read_bytes()
            for absent in ("/ui/api/live", "/ui/../__init__.py", "/nothing"):
                assert client.get(absent).status_code == 404, absent
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("{", "is not JSON"),
        ("[]", "is not a recording"),
        ('{"traceEvents": []}', "is not a recording"),
        ('{"galley": {"format": 9}}', "is not a recording"),
    ],
)
def test_what_is_no_recording_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, message: str
) -> None:
    path = tmp_path / "run.json"
    if content is not None:
        path.write_text(content)
    assert main(["replay", str(path)]) == 2
    assert message in capsys.readouterr().err


def test_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay"]) == 2
    assert "FILE is missing" in capsys.readouterr().err
    assert main(["replay", "x", "--port", "70000"]) == 2
    assert "--port must be in" in capsys.readouterr().err
