"""Malformed requests: each a clear 4xx that names what is wrong, and the server lives on."""

from __future__ import annotations

import codecs
import json
import socket
from typing import Any

import httpx
import pytest

from galley.config.server import ServerConfig
from tests.server.served import MODEL, Served, serve

HI = [{"role": "user", "content": "hi"}]
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_JSON = {"type": "json_object"}


def _schema(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


#: (field at fault, what is added to a good chat request)
BAD_CHAT: list[tuple[str, dict[str, Any]]] = [
    ("messages", {"messages": None}),
    ("messages", {"messages": []}),
    ("messages", {"messages": "hi"}),
    ("messages", {"messages": {"role": "user", "content": "hi"}}),
    ("messages", {"messages": ["hi"]}),
    ("messages", {"messages": [[]]}),
    ("messages", {"messages": [{"content": "hi"}]}),
    ("messages", {"messages": [{"role": "", "content": "hi"}]}),
    ("messages", {"messages": [{"role": 5, "content": "hi"}]}),
    ("messages", {"messages": [{"role": "user", "content": 5}]}),
    ("messages", {"messages": [{"role": "user", "content": {"text": "hi"}}]}),
    ("messages", {"messages": [{"role": "user", "content": [5]}]}),
    ("messages", {"messages": [{"role": "user", "content": [{"text": "hi"}]}]}),
    ("messages", {"messages": [{"role": "user", "content": [{"type": "text"}]}]}),
    ("messages", {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}),
    (
        "messages",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
    ),
    ("messages", {"messages": [{"role": "assistant", "tool_calls": "none", "content": ""}]}),
    ("model", {"model": 5}),
    ("stream", {"stream": "yes"}),
    ("stream_options", {"stream_options": {"include_usage": True}}),
    ("stream_options", {"stream": True, "stream_options": True}),
    ("stream_options", {"stream": True, "stream_options": {"include_usage": "x"}}),
    ("top_logprobs", {"top_logprobs": 2}),
    ("top_logprobs", {"logprobs": True, "top_logprobs": -2}),
    ("top_logprobs", {"logprobs": True, "top_logprobs": 21}),
    ("logprobs", {"logprobs": 3}),
    ("max_tokens", {"max_tokens": 0}),
    ("max_tokens", {"max_tokens": -5}),
    ("max_tokens", {"max_tokens": "many"}),
    ("max_tokens", {"max_tokens": 1.5}),
    ("max_tokens", {"max_tokens": 100_000}),
    ("max_tokens", {"max_tokens": 10**40}),
    ("max_completion_tokens", {"max_completion_tokens": []}),
    ("continue_final_message", {"continue_final_message": True}),
    ("chat_template", {"chat_template": "{{ messages }}"}),
    ("chat_template_kwargs", {"chat_template_kwargs": {"messages": []}}),
    ("chat_template_kwargs", {"chat_template_kwargs": [1]}),
    ("documents", {"documents": "doc"}),
    ("documents", {"documents": [{"text": 5}]}),
    ("reasoning_effort", {"reasoning_effort": "extreme"}),
    ("tools", {"tools": [{"type": "function", "function": {"name": ""}}]}),
    ("tools", {"tools": [{"type": "function", "function": {"parameters": {}}}]}),
    ("tools", {"tools": [{"type": "retrieval"}]}),
    ("tools", {"tools": []}),
    ("tool_choice", {"tools": [{"type": "function", "function": {"name": "f"}}]}),
    ("tool_choice", {"tool_choice": "auto"}),
    ("tool_choice", {"tool_choice": "required"}),
    ("tool_choice", {"tool_choice": "some"}),
    (
        "tool_choice",
        {
            "tools": [{"type": "function", "function": {"name": "f"}}],
            "tool_choice": {"type": "function", "function": {"name": "g"}},
        },
    ),
    ("functions", {"functions": [{"name": "f"}]}),
    ("response_format", {"response_format": {"type": "yaml"}}),
    ("response_format", {"response_format": {"type": "json_schema"}}),
    ("response_format", {"response_format": _schema({"type": "no type"})}),
    ("response_format", {"response_format": _schema(None)}),
    ("response_format", {"response_format": _JSON, "structured_outputs": {"regex": "a"}}),
    ("structured_outputs", {"structured_outputs": {"regex": "((a"}}),
    ("structured_outputs", {"structured_outputs": {"regex": "a", "json": {}}}),
    ("structured_outputs", {"structured_outputs": {}}),
    ("structured_outputs", {"structured_outputs": {"choice": []}}),
    ("structured_outputs", {"structured_outputs": {"grammar": "root ::= ("}}),
    ("guided_choice", {"guided_regex": "a", "guided_choice": ["b"]}),
    ("guided_regex", {"guided_regex": "(("}),
    ("modalities", {"modalities": ["text", "audio"]}),
    ("user", {"user": 5}),
    ("metadata", {"metadata": "x"}),
]

#: The same for a completion.
BAD_COMPLETION: list[tuple[str, dict[str, Any]]] = [
    ("prompt", {"prompt": None}),
    ("prompt", {"prompt": ""}),
    ("prompt", {"prompt": []}),
    ("prompt", {"prompt": [[]]}),
    ("prompt", {"prompt": 5}),
    ("prompt", {"prompt": {"text": "hi"}}),
    ("prompt", {"prompt": ["a", 5]}),
    ("prompt", {"prompt": [5, [5]]}),
    ("prompt", {"prompt": [-1]}),
    ("prompt", {"prompt": [10**6]}),
    ("prompt", {"prompt": [10**30]}),
    ("prompt", {"prompt": [1.5]}),
    ("prompt", {"prompt": [True]}),
    ("prompt", {"prompt": [[["a"]]]}),
    ("prompt", {"prompt": "word " * 400}),
    ("prompt", {"prompt": list(range(5, 400))}),
    ("prompt", {"prompt": ["a"] * 2000}),
    ("max_tokens", {"max_tokens": 0}),
    ("logprobs", {"logprobs": -2}),
    ("logprobs", {"logprobs": 10**6}),
    ("logprobs", {"logprobs": True}),
    ("prompt_logprobs", {"prompt_logprobs": -2}),
    ("prompt_logprobs", {"prompt_logprobs": 1, "stream": True}),
    ("prompt_logprobs", {"prompt_logprobs": 21}),
    ("n", {"n": 0}),
    ("n", {"n": -1}),
    ("n", {"n": 10**6}),
    ("temperature", {"temperature": -0.1}),
    ("temperature", {"temperature": "hot"}),
    ("temperature", {"temperature": 10**400}),
    ("top_p", {"top_p": 0}),
    ("top_p", {"top_p": 1.1}),
    ("top_k", {"top_k": -2}),
    ("top_k", {"top_k": 0.5}),
    ("min_p", {"min_p": 2}),
    ("presence_penalty", {"presence_penalty": 3}),
    ("frequency_penalty", {"frequency_penalty": -3}),
    ("repetition_penalty", {"repetition_penalty": 0}),
    ("seed", {"seed": 2**63}),
    ("seed", {"seed": "lucky"}),
    ("stop", {"stop": ["a", "b", "c", "d", "e"]}),
    ("stop", {"stop": [""]}),
    ("stop", {"stop": ""}),
    ("stop", {"stop": [5]}),
    ("stop_token_ids", {"stop_token_ids": ["a"]}),
    ("min_tokens", {"min_tokens": -1}),
    ("min_tokens", {"min_tokens": 20}),
    ("logit_bias", {"logit_bias": {"a": 1}}),
    ("logit_bias", {"logit_bias": {"5": "much"}}),
    ("logit_bias", {"logit_bias": {str(10**6): 1}}),
    ("logit_bias", {"logit_bias": {str(i): 1 for i in range(1025)}}),
    ("logit_bias", {"logit_bias": [5]}),
    ("length_penalty", {"use_beam_search": True, "length_penalty": 1e5}),
    ("allowed_token_ids", {"allowed_token_ids": []}),
    ("allowed_token_ids", {"allowed_token_ids": [10**6]}),
    ("allowed_token_ids", {"allowed_token_ids": [-1]}),
    ("bad_words", {"bad_words": [""]}),
    ("bad_words", {"bad_words": ["a"] * 129}),
    ("bad_words", {"bad_words": "a"}),
    ("truncate_prompt_tokens", {"truncate_prompt_tokens": -2}),
    ("truncate_prompt_tokens", {"truncate_prompt_tokens": 1000}),
    ("truncate_prompt_tokens", {"truncate_prompt_tokens": 1000, "truncation_side": "right"}),
    ("truncation_side", {"truncation_side": "middle"}),
    ("cache_salt", {"cache_salt": ""}),
    ("request_id", {"request_id": "x" * 300}),
    ("priority", {"priority": "high"}),
    ("best_of", {"best_of": 2}),
    ("prompt_embeds", {"prompt_embeds": "AAAA"}),
    ("suffix", {"suffix": 5}),
    ("logit_bias", {"logit_bias": {"5": 1, "word": 1}}),
    ("kv_transfer_params", {"kv_transfer_params": "remote"}),
    ("watermarking", {"watermarking": True}),
    ("thinking_token_budget", {"thinking_token_budget": 5}),
    ("repetition_detection", {"repetition_detection": {"max_pattern_size": 3}}),
    ("vllm_xargs", {"vllm_xargs": {"a": 1}}),
    ("logprob_token_ids", {"logprob_token_ids": [5]}),
    ("skip_special_tokens", {"skip_special_tokens": None}),
    ("echo", {"echo": "yes"}),
]

#: Bodies that are not even a request, all to the completions endpoint.
BAD_BODIES: list[bytes] = [
    b"",
    b"null",
    b"[]",
    b'"prompt"',
    b"5",
    b"{",
    b'{"prompt": "a"',
    b'{"prompt": "a"}}',
    b"{'prompt': 'a'}",
    b'{"prompt": "a", "temperature": NaN}',
    b'{"prompt": "a", "temperature": Infinity}',
    b'{"prompt": "\\ud800"}',
    b'{"prompt": "\xff"}',
    b'{"prompt": "a", "user": "\xff"}',
    b'{"prompt": "a", "no_such_field": "\xff"}',
    b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"no_such_field": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}",
    b"\x00\x01\x02",
    b'{"prompt": "a"}\n{"prompt": "b"}',
]


def check(response: httpx.Response, status: int, field: str | None = None) -> None:
    assert response.status_code == status, response.text[:500]
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["code"] == status
    assert error["message"]
    assert len(response.content) < 2000
    if field is not None:
        assert error["param"] == field, error
        assert error["type"] == "BadRequestError"


@pytest.mark.parametrize(("field", "wrong"), BAD_CHAT, ids=lambda v: str(v)[:60])
def test_chat(served: Served, field: str, wrong: dict[str, Any]) -> None:
    body = {"model": MODEL, "messages": HI, **wrong}
    check(served.post(CHAT, body), 400, field)
    assert served.post(CHAT, {"messages": HI}).status_code == 200


@pytest.mark.parametrize(("field", "wrong"), BAD_COMPLETION, ids=lambda v: str(v)[:60])
def test_completion(served: Served, field: str, wrong: dict[str, Any]) -> None:
    body = {"model": MODEL, "prompt": "hi", **wrong}
    check(served.post(COMPLETIONS, body), 400, field)
    assert served.post(COMPLETIONS, {"prompt": "hi"}).status_code == 200


@pytest.mark.parametrize("body", BAD_BODIES, ids=lambda b: repr(b[:30]))
def test_body(served: Served, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    for path in (COMPLETIONS, CHAT, "/tokenize", "/detokenize"):
        check(served.post(path, content=body, headers=headers), 400)
    assert served.post(COMPLETIONS, {"prompt": "hi"}).status_code == 200


def test_there_are_enough_of_them() -> None:
    assert len(BAD_CHAT) + len(BAD_COMPLETION) + len(BAD_BODIES) >= 60


@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
def test_content_type(served: Served, content_type: str | None) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    body = json.dumps({"prompt": "hi"}).encode()
    check(served.post(COMPLETIONS, content=body, headers=headers), 400, "Content-Type")
    good = {"content-type": "application/json; charset=utf-8"}
    for sent in (body, codecs.BOM_UTF8 + body):
        assert served.post(COMPLETIONS, content=sent, headers=good).status_code == 200


def test_unknown_model(served: Served) -> None:
    for path, body in ((CHAT, {"messages": HI}), (COMPLETIONS, {"prompt": "hi"})):
        response = served.post(path, {"model": "gpt-5", **body})
        check(response, 404)
        error = response.json()["error"]
        assert (error["type"], error["param"]) == ("NotFoundError", "model")
        assert "gpt-5" in error["message"]


def test_unknown_route_and_wrong_method(served: Served) -> None:
    check(served.get("/v1/nothing"), 404)
    check(served.get("/v1/models/nothing"), 404)
    check(served.get(CHAT), 405)
    check(served.post("/v1/models", {}), 405)


def test_sentences_name_the_numbers(served: Served) -> None:
    """http_behaviours 5."""
    for prompt, words in (
        ([10**6], ("1000000", "out of vocabulary")),
        ("", ("empty",)),
        (list(range(5, 400)), ("maximum context length is 256 tokens", "395 tokens")),
    ):
        message = served.post(COMPLETIONS, {"prompt": prompt}).json()["error"]["message"]
        assert all(word in message for word in words), message


def test_a_body_too_large_is_refused_unread() -> None:
    with serve(ServerConfig(max_request_body_bytes=2000)) as served:
        check(served.post(COMPLETIONS, {"prompt": "a" * 3000}), 413)

        def drip() -> Any:
            for _ in range(50):
                yield b" " * 100

        headers = {"content-type": "application/json"}
        check(served.post(COMPLETIONS, content=drip(), headers=headers), 413)
        assert served.post(COMPLETIONS, {"prompt": "hi"}).status_code == 200


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 100,
        b"GET /health HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 5000,
        b"GET /" + b"a" * 5000,
        b"NONSENSE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=["many headers", "long header", "long line", "no http", "tls hello"],
)
def test_heads_beyond_the_limits(head: bytes) -> None:
    limits = ServerConfig(h11_max_header_count=16, h11_max_incomplete_event_size=1024)
    with serve(limits) as served:
        with socket.create_connection(("127.0.0.1", served.port), timeout=10) as sock:
            sock.sendall(head)
            answer = sock.recv(1000)
            assert answer.startswith(b"HTTP/1.1 400 ")
        assert served.get("/health").status_code == 200


def test_a_key_that_is_no_token_is_named(served: Served) -> None:
    body = {"prompt": "Hi", "logit_bias": {"5": 1, "word": 1}}
    error = served.post("/v1/completions", body).json()["error"]
    assert error["param"] == "logit_bias"
    assert "'word'" in error["message"]
