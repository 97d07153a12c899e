"""What a newcomer meets: pages without a network, help in refusals, an access log with reasons."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator

import httpx
import pytest

from benchmarks import served as real
from galley.config.server import ServerConfig
from galley.launcher.main import exposure
from galley.server.access_log import reason_of
from galley.server.missing import advice
from tests.server.served import MODEL, Served, serve

HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serve() as served:
        yield served


@pytest.mark.parametrize("path", ["/", "/docs", "/redoc", "/docs/oauth2-redirect"])
def test_pages_need_no_other_site(served: Served, path: str) -> None:
    page = served.get(path)
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "//" not in re.sub(r"\$\{location.origin\}", "", page.text)


def test_home_names_the_model_and_escapes_it(served: Served) -> None:
    assert f"<b>{MODEL}</b>" in served.get("/").text
    with serve(ServerConfig(disable_fastapi_docs=True), names=("</script><b>",)) as other:
        page = other.get("/").text
        assert "/docs" not in page
        assert page.count("</script>") == 1


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/chat/completions", "Did you mean /v1/chat/completions?"),
        ("/v1/v1/chat/completions", "Did you mean /v1/chat/completions?"),
        ("/v1/chat/completion", "Did you mean /v1/chat/completions?"),
        ("/api/chat", "Ollama's API is not served"),
        ("/v1/embeddings", "--runner pooling"),
    ],
)
def test_unknown_paths_lead_on(served: Served, path: str, words: str) -> None:
    answer = served.post(path, {})
    assert answer.status_code == 404
    assert words in answer.json()["error"]["message"]


def test_far_paths_get_no_advice() -> None:
    assert advice("/wp-admin/setup.php", ["/v1/chat/completions", "/health"]) == ""


def test_models_by_name(served: Served) -> None:
    assert served.client().models.retrieve(MODEL).id == MODEL
    answer = served.get("/v1/models/gpt-4")
    assert answer.status_code == 404
    assert f"Served here: {MODEL}." in answer.json()["error"]["message"]
    with serve(names=("models/a.gguf",)) as other:
        assert other.client().models.retrieve("models/a.gguf").id == "models/a.gguf"


@pytest.mark.parametrize("stream", [False, True])
def test_unknown_fields_are_told_to_the_sender(served: Served, stream: bool) -> None:
    body = {"messages": HI, "temprature": 0.5, "bad\r\nname": 1, "user": "me", "stream": stream}
    answer = served.post("/v1/chat/completions", body)
    assert answer.status_code == 200
    assert answer.headers["x-ignored-fields"] == "temprature;like=temperature"
    answer = served.post("/v1/chat/completions", {"messages": HI})
    assert "x-ignored-fields" not in answer.headers
    if not stream:
        with serve(ServerConfig(strict_requests=True)) as strict:
            answer = strict.post("/v1/chat/completions", body)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "bad\r\nname")
            answer = strict.post("/v1/completions", {"prompt": "hi", "max_token": 5})
            assert "Did you mean max_tokens?" in answer.json()["error"]["message"]
            assert strict.post("/v1/completions", {"prompt": "hi"}).status_code == 200


def test_the_log_says_why_and_how_long(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "uvicorn.access"):
        assert served.get("/health?x=1").status_code == 200
        assert served.post("/v1/chat/completions", {"messages": HI, "n": "two"}).status_code == 400
        assert served.post("/v1/completions", {"model": "no\nno", "prompt": "a"}).status_code == 404
        body = {"prompt": [1, 2, 3], "max_tokens": 2}
        assert served.post("/v1/completions", body).status_code == 200
        # A line is written after its answer.
        assert served.get("/health").status_code == 200
    lines = [r.getMessage() for r in caplog.records if r.name == "uvicorn.access"]
    # The line of a request of the test before may be written late.
    lines = lines[next(i for i, line in enumerate(lines) if "/health?x=1" in line) :]
    assert re.search(r'"GET /health\?x=1 HTTP/1.1" 200 \d+\.\d{3} s$', lines[0])
    assert re.search(r'HTTP/1.1" 400 \d+\.\d{3} s n: Expected `integer \| null`', lines[1])
    assert "The model `no no` does not exist" in lines[2]
    assert re.search(r"200 \S+ s 3 tokens in, first after \S+ s, 2 out$", lines[3])


def test_reasons_are_one_short_line() -> None:
    body = b'{"error": {"message": "a\\n\\u001b[31mb' + b"x" * 500 + b'"}}'
    assert reason_of(body).startswith("a ?[31mbx")
    assert len(reason_of(body)) == 200
    assert reason_of(b"no JSON") == reason_of(b"\xff") == reason_of(b"{}") == ""


def test_the_address_says_who_can_reach_it() -> None:
    assert "without an API key" in exposure(ServerConfig())
    assert exposure(ServerConfig(api_key=("x",))) == " (on all interfaces)"
    assert exposure(ServerConfig(host="127.0.0.1")) == ""
    assert exposure(ServerConfig(uds="/tmp/x")) == ""


def test_one_voice_in_the_log() -> None:
    """With a JSON log every line is an object, and what will hurt later is said."""
    flags = (
        *("--max-model-len", "512", "--kv-cache-memory-bytes", "900G", "--shutdown-timeout", "3"),
        *("--logging-config", '{"formatter": "json"}'),
    )
    with real.serve(*flags) as server:
        turn = {"role": "usr", "content": "Hi"}
        body = {"messages": [turn], "max_tokens": 1}
        assert httpx.post(f"{server.url}/v1/chat/completions", json=body).is_success
    told = [json.loads(line)["message"] for line in server.log]
    for words in (
        "no model given",
        "memory runs out before it is full",
        "serving at",
        "the role 'usr' is none of",
        "requests in flight have 3 s; Ctrl-C again ends now",
    ):
        assert any(words in message for message in told), (words, told)
