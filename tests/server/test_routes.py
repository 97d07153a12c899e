"""The small routes: models, tokenize, probes, documentation."""

from __future__ import annotations

import re
from typing import Any

import httpx

from galley import __version__
from galley.config.server import ServerConfig
from tests.server.served import LIMITS, MODEL, Served, serve, tokenizer

TEXT = "The cat sat on the mat."


def test_models() -> None:
    """Checklist 169."""
    with serve(names=("first", "second")) as served:
        cards = served.client().models.list().data
        assert [card.id for card in cards] == ["first", "second"]
        raw = served.get("/v1/models").json()
        assert raw["object"] == "list"
        for card in raw["data"]:
            assert card["object"] == "model"
            assert card["max_model_len"] == LIMITS.max_model_len
            assert card["root"] == "somewhere/tiny"
            assert card["parent"] is None
            assert card["permission"][0]["allow_sampling"] is True
        for name in ("first", "second", None):
            answer = served.post("/v1/completions", {"model": name, "prompt": "hi"}).json()
            assert answer["model"] == (name or "first")


def test_tokenize_and_back(served: Served) -> None:
    answer = served.post("/tokenize", {"model": MODEL, "prompt": TEXT}).json()
    ids = tokenizer().encode(TEXT)
    assert answer == {
        "count": len(ids),
        "max_model_len": LIMITS.max_model_len,
        "tokens": ids,
        "token_strs": None,
    }
    assert served.post("/detokenize", {"tokens": ids}).json() == {"prompt": TEXT}
    named = served.post("/tokenize", {"prompt": TEXT, "return_token_strs": True}).json()
    assert named["token_strs"] == [tokenizer().id_to_token(i) for i in ids]
    assert served.post("/detokenize", {"tokens": [1, 2]}).json()["prompt"] == (
        "<|im_start|><|im_end|>"
    )
    assert served.post("/detokenize", {"tokens": []}).json() == {"prompt": ""}
    assert served.post("/tokenize", {"prompt": ""}).json()["count"] == 0


def test_tokenize_a_conversation(served: Served) -> None:
    messages = [{"role": "user", "content": "hi"}]
    ids = served.post("/tokenize", {"messages": messages}).json()["tokens"]
    served.post("/v1/chat/completions", {"messages": messages})
    seen = memoryview(served.engine.seen[0].prompt_token_ids).cast("i").tolist()
    assert ids == seen
    body = {"messages": messages, "add_generation_prompt": False}
    shorter = served.post("/tokenize", body).json()["tokens"]
    assert ids[: len(shorter)] == shorter
    assert len(shorter) < len(ids)


def test_tokenize_refuses(served: Served) -> None:
    for path, body, field in (
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "messages"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": [{"role": "user", "content": "a"}], "tools": [{}]}, "tools"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [10**6]}, "tokens"),
        ("/detokenize", {"tokens": [10**30]}, "tokens"),
    ):
        response = served.post(path, body)
        assert response.status_code == 400, body
        assert response.json()["error"]["param"] == field, body
    assert served.post("/tokenize", {"model": "x", "prompt": "a"}).status_code == 404


def test_without_a_tokenizer_there_is_no_text() -> None:
    with serve(with_tokenizer=False) as served:
        for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [5]})):
            response = served.post(path, body)
            assert response.status_code == 400
            assert "--skip-tokenizer-init" in response.json()["error"]["message"]


def test_probes(served: Served) -> None:
    """Checklist 176."""
    for method in ("get", "post"):
        assert getattr(served, method)("/ping").status_code == 200
    assert served.get("/health").status_code == 200
    assert served.get("/health").content == b""
    assert served.get("/version").json() == {"version": __version__, "batch_invariant": True}
    served.engine.down = "gone"
    assert served.get("/health").status_code == 503
    assert served.post("/ping").status_code == 503


def test_metrics_are_prometheus_text(served: Served) -> None:
    """Checklist 177."""
    response = served.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    head = httpx.head(served.url + "/metrics")
    assert (head.status_code, head.content) == (200, b"")
    line = re.compile(r"#.*|[a-zA-Z_:][a-zA-Z0-9_:]*(\{[^{}]*\})? [0-9eE.+-]+")
    for text in response.text.splitlines():
        assert line.fullmatch(text), text


def test_the_api_describes_itself(served: Served) -> None:
    document: dict[str, Any] = served.get("/openapi.json").json()
    operation = document["paths"]["/v1/chat/completions"]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    name = schema["$ref"].rpartition("/")[2]
    properties = document["components"]["schemas"][name]["properties"]
    assert {"messages", "temperature", "user", "cache_salt"} <= properties.keys()
    assert properties["user"]["description"].startswith("Without effect")
    assert "text/event-stream" in operation["responses"]["200"]["content"]
    assert operation["responses"].keys() == {"200", "400", "404", "413", "500", "503"}
    assert properties["functions"]["description"].startswith("Refused")
    for path in ("/docs", "/redoc"):
        assert served.get(path).status_code == 200


def test_the_description_can_be_switched_off() -> None:
    with serve(ServerConfig(disable_fastapi_docs=True)) as served:
        for path in ("/docs", "/redoc", "/openapi.json"):
            assert served.get(path).status_code == 404
        assert served.get("/health").status_code == 200


def test_fingerprints() -> None:
    def fingerprint(**options: Any) -> Any:
        with serve(ServerConfig(**options)) as served:
            body = {"prompt": "hi"}
            return served.post("/v1/completions", body).json()["system_fingerprint"]

    assert re.fullmatch(rf"galley-{re.escape(__version__)}-[0-9a-f]{{8}}", fingerprint())
    assert re.fullmatch("[0-9a-f]{8}", fingerprint(fingerprint_mode="hash"))
    assert fingerprint(fingerprint_mode="custom", fingerprint_value="mine") == "mine"
    assert fingerprint(fingerprint_mode="none") is None


def test_requests_are_logged_only_when_asked(caplog: Any, served: Served) -> None:
    """Checklist 222, 224."""
    caplog.set_level("INFO")
    served.post("/v1/completions", {"prompt": "a secret text"})
    assert "secret" not in caplog.text
    with serve(ServerConfig(enable_log_requests=True, max_log_len=4)) as logging:
        logging.post("/v1/completions", {"prompt": "a secret text", "request_id": "r1"})
        logging.post("/v1/completions", {"prompt": [11, 12, 13, 14, 15, 16]})
    assert "Received request cmpl-r1-0: prompt: 'a se'," in caplog.text
    assert "[11, 12, 13, 14]," in caplog.text
    assert "secret" not in caplog.text


def test_tokenizer_info_is_behind_its_flag(served: Served) -> None:
    assert served.get("/tokenizer_info").status_code == 404
    with serve(ServerConfig(enable_tokenizer_info_endpoint=True)) as telling:
        info = telling.get("/tokenizer_info").json()
    words = tokenizer()
    assert info["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (info["bos_token"], info["eos_token"]) == (words.bos_token, words.eos_token)
    assert info["model_max_length"] == LIMITS.max_model_len
    assert info["chat_template"] == words.chat_templates["default"]
    assert info["added_tokens_decoder"]["1"] == {"content": "<|im_start|>", "special": True}
