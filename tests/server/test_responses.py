"""/v1/responses through the real `openai` client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.server.served import MODEL, REPLY, Served, serve, tokenizer
from tests.server.test_disconnect import send, wait_for

ASK = "What is the capital of France?"
TURN = "<|im_start|>{role}\n{text}<|im_end|>\n"


def ask(served: Served, **options: Any) -> Any:
    options = {"model": MODEL, "input": ASK, **options}
    return served.client().responses.create(**options)


def seen(served: Served) -> str:
    ids = memoryview(served.engine.seen[-1].prompt_token_ids).cast("i").tolist()
    return tokenizer().decode(ids, False)


def prompt(*turns: tuple[str, str]) -> str:
    return "".join(TURN.format(role=r, text=t) for r, t in turns) + "<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def storing_server() -> Iterator[Served]:
    with serve(store_responses=True) as served:
        yield served


@pytest.fixture
def storing(storing_server: Served) -> Iterator[Served]:
    engine = storing_server.engine
    engine.seen.clear()
    script = engine.script
    yield storing_server
    engine.script, engine.pause, engine.hold, engine.failure = script, 0.0, False, None


def test_whole_answer(served: Served) -> None:
    response = ask(served, instructions="Be brief.", metadata={"a": "b"}, temperature=0.5)
    assert response.id.startswith("resp_")
    assert response.object == "response"
    assert response.status == "completed"
    assert response.output_text == REPLY
    [item] = response.output
    assert item.id.startswith("msg_")
    assert (item.type, item.role, item.status) == ("message", "assistant", "completed")
    assert response.temperature == 0.5
    assert response.metadata == {"a": "b"}
    assert response.usage.output_tokens == len(tokenizer().encode(REPLY, False)) + 1
    assert response.usage.input_tokens == len(served.engine.seen[0].prompt_token_ids) // 4
    total = response.usage.input_tokens + response.usage.output_tokens
    assert response.usage.total_tokens == total
    assert seen(served) == prompt(("system", "Be brief."), ("user", ASK))


@pytest.mark.parametrize("stream", [False, True])
def test_messages_as_the_model_has_them(served: Served, stream: bool) -> None:
    asked: dict[str, Any] = {"extra_body": {"enable_response_messages": True}, "stream": stream}
    answer = ask(served, **asked)
    if stream:
        answer = list(answer)[-1].response
    [read], [written] = answer.input_messages, answer.output_messages
    request = memoryview(served.engine.seen[-1].prompt_token_ids).cast("i").tolist()
    assert read["message"] == seen(served)
    assert read["tokens"] == request
    assert written["message"] == REPLY
    assert written["type"] == "raw_message_tokens"
    assert len(written["tokens"]) == answer.usage.output_tokens
    assert tokenizer().decode(written["tokens"]) == REPLY
    plain = ask(served)
    assert plain.input_messages is None
    assert plain.output_messages is None


def test_input_as_items(served: Served) -> None:
    ask(
        served,
        input=[
            {"role": "developer", "content": "Be brief."},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
            {
                "type": "message",
                "id": "msg_1",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": "b", "annotations": []}],
            },
            {"role": "user", "content": "c"},
        ],
    )
    assert seen(served) == prompt(
        ("system", "Be brief."), ("user", "a"), ("assistant", "b"), ("user", "c")
    )


@pytest.mark.parametrize("status", ["in_progress", "incomplete", "completed"])
def test_a_message_that_is_not_complete_is_continued(served: Served, status: str) -> None:
    begun = {"type": "message", "role": "assistant", "id": "m", "status": status}
    begun["content"] = [{"type": "output_text", "text": "The capital", "annotations": []}]
    ask(served, input=[{"role": "user", "content": ASK}, begun])
    assert seen(served).endswith("The capital") == (status != "completed")


def test_cut_short(served: Served) -> None:
    response = ask(served, max_output_tokens=3)
    assert response.status == "incomplete"
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.output[0].status == "incomplete"
    last = list(ask(served, max_output_tokens=3, stream=True))[-1]
    assert last.type == "response.incomplete"


def test_events_nest_and_keep_their_ids(served: Served) -> None:
    """HTTP behaviour 11."""
    events = list(ask(served, stream=True))
    assert [e.sequence_number for e in events] == list(range(len(events)))
    kinds = [e.type.removeprefix("response.") for e in events]
    deltas = kinds.count("output_text.delta")
    assert deltas > 5
    assert kinds == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *["output_text.delta"] * deltas,
        *("output_text.done", "content_part.done", "output_item.done", "completed"),
    ]
    item_id = events[2].item.id
    assert {e.item_id for e in events if hasattr(e, "item_id")} == {item_id}
    assert {e.output_index for e in events if hasattr(e, "output_index")} == {0}
    assert "".join(e.delta for e in events if hasattr(e, "delta")) == REPLY
    created, completed = events[0].response, events[-1].response
    assert (created.status, created.output, created.usage) == ("in_progress", [], None)
    assert completed.id == created.id
    assert completed.output[0].id == item_id
    assert completed.output_text == events[-2].item.content[0].text == REPLY
    whole = ask(served)
    assert completed.usage.output_tokens == whole.usage.output_tokens
    assert completed.output[0].content == whole.output[0].content


def test_the_clients_own_stream_helper(served: Served) -> None:
    with served.client().responses.stream(model=MODEL, input=ASK) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == REPLY


def test_logprobs(served: Served) -> None:
    include = ["message.output_text.logprobs"]
    response = ask(served, include=include, top_logprobs=2)
    [part] = response.output[0].content
    ids = tokenizer().encode(REPLY, False)
    assert [p.token for p in part.logprobs][: len(ids)] == [
        tokenizer().decode_token(i) for i in ids
    ]
    assert all(len(p.top_logprobs) == 2 for p in part.logprobs)
    streamed = [
        p.logprob
        for event in ask(served, include=include, top_logprobs=2, stream=True)
        if event.type == "response.output_text.delta"
        for p in event.logprobs
    ]
    assert streamed == [p.logprob for p in part.logprobs]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": 7}, "input"),
        ({"input": [{"type": "function_call_output", "output": "y"}]}, "input"),
        ({"input": [{"type": "function_call", "call_id": "x", "name": "f"}]}, "input"),
        ({"input": [{"type": "computer_call"}]}, "input"),
        ({"input": [{"type": "reasoning", "content": [{"text": 5}]}]}, "input"),
        ({"input": [{"role": "user"}]}, "input"),
        ({"background": True}, "background"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"tools": [{"type": "function", "name": "f"}]}, "tool_choice"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": 5}}}}, "text"),
        ({"include": ["thoughts"]}, "include"),
        ({"top_logprobs": -1}, "top_logprobs"),
        ({"temperature": 7, "top_p": 0}, "top_p"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"max_output_tokens": 0}, "max_tokens"),
        ({"reasoning": {"summary": "detailed"}}, "reasoning"),
    ],
)
def test_what_is_wrong_is_named(served: Served, change: dict[str, Any], field: str) -> None:
    answer = served.post("/v1/responses", {"model": MODEL, "input": ASK, **change})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field


@pytest.mark.parametrize(
    "change",
    [
        {"include": ["reasoning.encrypted_content"], "top_logprobs": 3},
        {"text": {"verbosity": "low"}},
        {"reasoning": {"effort": "low", "summary": "auto"}},
        {"text": {"format": {"type": "text"}, "verbosity": "medium"}},
    ],
)
def test_what_asks_for_nothing_that_an_answer_has_is_accepted(
    served: Served, change: dict[str, Any]
) -> None:
    answer = served.post("/v1/responses", {"input": ASK, **change})
    assert answer.status_code == 200
    assert answer.json()["output"][0]["content"][0]["logprobs"] is None


def test_truncation_makes_a_long_input_fit(served: Served) -> None:
    long = "word " * 400
    assert served.post("/v1/responses", {"input": long}).status_code == 400
    body = {"input": long, "truncation": "auto", "max_output_tokens": 4}
    assert served.post("/v1/responses", body).status_code == 200


def test_failures_of_the_engine(served: Served) -> None:
    served.engine.failure = "it broke"
    with pytest.raises(openai.InternalServerError, match="it broke"):
        ask(served, stream=True)


def test_a_disconnect_aborts(served: Served) -> None:
    served.engine.script = lambda request: [5] * 200
    served.engine.pause = 0.3
    sock = send(served, "/v1/responses", {"input": ASK, "stream": True})
    wait_for(lambda: len(served.engine.seen) == 1)
    sock.close()
    wait_for(lambda: len(served.engine.aborted) == 1)


# ---------------------------------------------------------------------- the store


def test_nothing_is_kept_without_the_store(served: Served) -> None:
    response = ask(served)
    with pytest.raises(openai.NotFoundError):
        served.client().responses.retrieve(response.id)


def test_retrieve_and_go_on(storing: Served) -> None:
    first = ask(storing, instructions="Be brief.")
    kept = storing.client().responses.retrieve(first.id)
    assert kept.output_text == REPLY
    assert kept.usage == first.usage
    second = ask(storing, input="And of Spain?", previous_response_id=first.id, stream=True)
    final = list(second)[-1].response
    # Instructions are of one request alone.
    assert "Be brief." not in seen(storing)
    turns = prompt(("user", ASK), ("assistant", REPLY), ("user", "And of Spain?"))
    assert seen(storing).endswith(turns)
    ask(storing, input="Thanks.", previous_response_id=final.id)
    assert seen(storing).count(REPLY) == 2
    with pytest.raises(openai.NotFoundError, match="resp_nowhere"):
        ask(storing, previous_response_id="resp_nowhere")
    unkept = ask(storing, store=False)
    with pytest.raises(openai.NotFoundError):
        storing.client().responses.retrieve(unkept.id)
    bad = storing.get(f"/v1/responses/{first.id}?stream=perhaps")
    assert (bad.status_code, bad.json()["error"]["param"]) == (400, "stream")
    assert storing.get(f"/v1/responses/{first.id}?stream=true").status_code == 400


def test_an_id_is_used_once(storing: Served) -> None:
    assert ask(storing, extra_body={"request_id": "resp_mine"}).id == "resp_mine"
    with pytest.raises(openai.BadRequestError, match="resp_mine"):
        ask(storing, extra_body={"request_id": "resp_mine"})


def test_in_the_background(storing: Served) -> None:
    client = storing.client()
    storing.engine.hold = True
    response = ask(storing, background=True)
    assert response.status == "queued"
    assert response.output == []
    wait_for(lambda: client.responses.retrieve(response.id).status == "in_progress")
    storing.engine.hold = False
    wait_for(lambda: client.responses.retrieve(response.id).status == "completed")
    assert client.responses.retrieve(response.id).output_text == REPLY


def test_cancelled_in_the_background(storing: Served) -> None:
    client = storing.client()
    storing.engine.hold = True
    response = ask(storing, background=True)
    aborted = len(storing.engine.aborted)
    assert client.responses.cancel(response.id).status == "cancelled"
    assert len(storing.engine.aborted) == aborted + 1
    assert client.responses.retrieve(response.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError, match="cancelled"):
        ask(storing, previous_response_id=response.id)
    storing.engine.hold = False
    done = ask(storing)
    with pytest.raises(openai.BadRequestError, match="synchronous"):
        client.responses.cancel(done.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.cancel("resp_nowhere")


def test_background_events_can_be_read_again(storing: Served) -> None:
    client = storing.client()
    storing.engine.pause = 0.01
    live = ask(storing, background=True, stream=True)
    first = next(live)
    again = list(client.responses.retrieve(first.response.id, stream=True))
    rest = list(live)
    assert [e.sequence_number for e in again] == list(range(len(again)))
    assert again == [first, *rest]
    tail = list(client.responses.retrieve(first.response.id, stream=True, starting_after=5))
    assert tail == again[6:]


def test_a_failure_in_the_background(storing: Served) -> None:
    storing.engine.failure = "it broke"
    response = ask(storing, background=True)
    client = storing.client()
    wait_for(lambda: client.responses.retrieve(response.id).status == "failed")
    assert client.responses.retrieve(response.id).error.message == "it broke"
    last = list(ask(storing, background=True, stream=True))[-1]
    assert last.type == "response.failed"
    assert json.loads(last.to_json())["response"]["error"]["message"] == "it broke"
