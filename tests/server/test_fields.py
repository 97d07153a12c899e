"""The table of request fields: every field of the API has exactly one fate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from galley.errors import InvalidRequest, Unsupported
from galley.server.protocol import (
    anthropic,
    chat,
    completions,
    describe,
    embeddings,
    pooling,
    responses,
    tokenize,
)
from galley.server.protocol.base import BodyReader, NoEffect, Refused

FIELDS: dict[str, list[str]] = json.loads(
    (Path(__file__).parent / "vllm_request_fields.json").read_text()
)
READERS: dict[str, BodyReader[Any]] = {
    "ChatCompletionRequest": chat.reader,
    "CompletionRequest": completions.reader,
    "BatchChatCompletionRequest": chat.batch_reader,
    "ResponsesRequest": responses.reader,
    "EmbeddingCompletionRequest": embeddings.reader,
    "EmbeddingChatRequest": embeddings.reader,
    "EmbeddingBatchChatRequest": embeddings.reader,
    "EmbeddingChatInputRequest": embeddings.reader,
    "CohereEmbedRequest": embeddings.cohere_reader,
    "ClassificationCompletionRequest": pooling.classification_reader,
    "ClassificationChatRequest": pooling.classification_reader,
    "RerankRequest": pooling.rerank_reader,
    "ScoreDataRequest": pooling.score_reader,
    "ScoreQueriesDocumentsRequest": pooling.score_reader,
    "ScoreQueriesItemsRequest": pooling.score_reader,
    "ScoreTextRequest": pooling.score_reader,
    "PoolingCompletionRequest": pooling.pooling_reader,
    "PoolingChatRequest": pooling.pooling_reader,
    "AnthropicMessagesRequest": anthropic.messages_reader,
    "AnthropicCountTokensRequest": anthropic.count_reader,
    "TokenizeCompletionRequest": tokenize.tokenize_reader,
    "TokenizeChatRequest": tokenize.tokenize_reader,
    "DetokenizeRequest": tokenize.detokenize_reader,
}


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_of_the_api_acts_or_is_in_the_table(name: str) -> None:
    reader = READERS[name]
    assert not set(FIELDS[name]) - reader.fields - reader.others.keys()
    assert not reader.fields & reader.others.keys()


@pytest.mark.parametrize("reader", [chat.reader, completions.reader], ids=["chat", "completion"])
def test_refused_fields_are_refused_by_name(reader: BodyReader[Any]) -> None:
    good: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}], "prompt": "a"}
    good = {k: v for k, v in good.items() if k in reader.fields}
    for name, field in reader.others.items():
        if isinstance(field, Refused):
            for inert in (None, False, "", [], {}, *field.inert):
                reader.read(json.dumps({**good, name: inert}).encode())
            for asking in (True, "x", [1], {"a": 1}, 7):
                with pytest.raises(Unsupported, match=name) as caught:
                    reader.read(json.dumps({**good, name: asking}).encode())
                assert caught.value.field == name


@pytest.mark.parametrize("reader", [chat.reader, completions.reader], ids=["chat", "completion"])
def test_fields_without_effect_have_a_type_and_a_reason(reader: BodyReader[Any]) -> None:
    good: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}], "prompt": "a"}
    good = {k: v for k, v in good.items() if k in reader.fields}
    plain = reader.read(json.dumps(good).encode())
    for name, field in reader.others.items():
        if isinstance(field, NoEffect):
            assert field.why
            with pytest.raises(InvalidRequest) as caught:
                reader.read(json.dumps({**good, name: [[[]]]}).encode())
            assert caught.value.field == name
            for value in ("x", 1, 1.5, True, {}, "none", None):
                try:
                    read = reader.read(json.dumps({**good, name: value}).encode())
                except InvalidRequest:
                    continue
                assert read == plain


def test_remembered_names_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    reader = BodyReader(tokenize.DetokenizeRequest, {})
    for i in range(3):
        body = {"tokens": [], **{f"x{j}": 1 for j in range(i * 600, i * 600 + 600)}}
        reader.read(json.dumps(body).encode())
    assert len(caplog.records) == 1000


def test_the_page_of_the_documentation_is_true() -> None:
    """Made by `python -m galley.server.protocol.describe > docs/request_fields.md`."""
    path = Path(__file__).parents[2] / "docs" / "request_fields.md"
    assert path.read_text() == describe.page()


@pytest.mark.parametrize(
    ("field", "given", "meant"),
    [
        ("max_tokens", 16.0, 16),
        ("n", 2.0, 2),
        ("top_k", 5.0, 5),
        ("seed", 1e3, 1000),
        ("stop_token_ids", [5.0, 6], [5, 6]),
        ("prompt_logprobs", 3.0, 3),
    ],
)
@pytest.mark.parametrize("reader", [chat.reader, completions.reader])
def test_whole_numbers_may_be_spelt_as_floats(
    reader: BodyReader[Any], field: str, given: Any, meant: Any
) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "prompt": "hi", field: given}
    assert getattr(reader.read(json.dumps(body).encode()), field) == meant


@pytest.mark.parametrize("prompt", [[5.0, 6.0], [[5.0], [6]]])
def test_token_ids_may_be_spelt_as_floats(prompt: Any) -> None:
    read = completions.reader.read(json.dumps({"prompt": prompt}).encode())
    assert json.dumps(read.prompt) == json.dumps(prompt).replace(".0", "")


@pytest.mark.parametrize("given", [1.5, "many", "16", 1e300, True, [1], float(2**63)])
def test_what_is_no_whole_number_is_refused(given: Any) -> None:
    body = {"prompt": "hi", "max_tokens": given}
    with pytest.raises(InvalidRequest) as refused:
        completions.reader.read(json.dumps(body).encode())
    assert refused.value.field == "max_tokens"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"tools": [{"type": "web_search"}]},
            "tools[0].type: Invalid value 'web_search'; expected one of 'function', 'custom', "
            "'namespace'.",
        ),
        (
            {"tool_choice": {"type": "allowed_tools", "mode": "all", "tools": []}},
            "tool_choice.mode: Invalid enum value 'all' (literal_error); expected one of 'auto', "
            "'required'.",
        ),
    ],
)
def test_allowed_values_are_named(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        responses.reader.read(json.dumps({"input": "hi", **given}).encode())
    assert refused.value.message == sentence
