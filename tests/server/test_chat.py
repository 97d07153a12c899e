"""/v1/chat/completions through the real `openai` client."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from galley.config.server import ServerConfig
from tests.server.served import LIMITS, MODEL, REPLY, Served, reply_with, serve, tokenizer

HI: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]


def chat(served: Served, **options: Any) -> Any:
    options = {"model": MODEL, "messages": HI, **options}
    return served.client().chat.completions.create(**options)


def events(served: Served, body: dict[str, Any], path: str = "/v1/chat/completions") -> list[Any]:
    """The decoded events of a raw stream, [DONE] left out after checking that it comes last."""
    response = served.post(path, {"model": MODEL, "stream": True, **body})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    lines = response.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    assert all(line.startswith("data: ") for line in lines[:-1])
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def test_whole_answer(served: Served) -> None:
    answer = chat(served)
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    assert answer.model == MODEL
    assert answer.system_fingerprint.startswith("galley-")
    [choice] = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == REPLY
    assert choice.message.tool_calls is None
    assert choice.finish_reason == "stop"
    num_reply = len(tokenizer().encode(REPLY, False)) + 1
    assert answer.usage.completion_tokens == num_reply
    assert answer.usage.prompt_tokens == len(served.engine.seen[0].prompt_token_ids) // 4
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + num_reply
    assert answer.usage.prompt_tokens_details is None


def test_the_template_makes_the_prompt(served: Served) -> None:
    chat(served, messages=[{"role": "system", "content": "Be brief."}, *HI])
    ids = memoryview(served.engine.seen[0].prompt_token_ids).cast("i").tolist()
    assert tokenizer().decode(ids, False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        f"<|im_start|>user\n{HI[0]['content']}<|im_end|>\n<|im_start|>assistant\n"
    )


def test_streamed_is_what_is_not_streamed(served: Served) -> None:
    whole = chat(served, n=2, logprobs=True, top_logprobs=2, seed=1)
    chunks = list(chat(served, n=2, logprobs=True, top_logprobs=2, seed=1, stream=True))
    assert {c.object for c in chunks} == {"chat.completion.chunk"}
    assert len({c.id for c in chunks}) == 1
    for index in range(2):
        mine = [c.choices[0] for c in chunks if c.choices and c.choices[0].index == index]
        assert mine[0].delta.role == "assistant"
        text = "".join(c.delta.content or "" for c in mine)
        assert text == whole.choices[index].message.content
        ends = [c.finish_reason for c in mine if c.finish_reason]
        assert ends == [whole.choices[index].finish_reason]
        assert mine[-1].finish_reason == ends[0]
        logprobs = [entry for c in mine if c.logprobs for entry in c.logprobs.content]
        assert logprobs == whole.choices[index].logprobs.content


def test_usage_comes_last_with_empty_choices(served: Served) -> None:
    """http_behaviours 4."""
    chunks = list(chat(served, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == []
    assert chunks[-1].usage == chat(served).usage
    assert all(c.usage is None for c in chunks[:-1])
    assert all(c.choices for c in chunks[:-1])


def test_a_stream_without_options_reports_no_usage(served: Served) -> None:
    assert all("usage" not in event for event in events(served, {"messages": HI}))


def test_continuous_usage_grows_with_every_chunk(served: Served) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    found = events(served, {"messages": HI, "stream_options": options})
    counts = [event["usage"]["completion_tokens"] for event in found]
    assert counts == sorted(counts)
    assert counts[0] == 0, "the role comes before the first token"
    assert counts[-1] == counts[-2] == len(tokenizer().encode(REPLY, False)) + 1
    assert {e["usage"]["prompt_tokens"] for e in found} == {found[-1]["usage"]["prompt_tokens"]}


@pytest.mark.parametrize("options", [{}, {"continuous_usage_stats": True}])
def test_stream_options_alone_ask_for_no_usage(served: Served, options: dict[str, bool]) -> None:
    found = events(served, {"messages": HI, "stream_options": options})
    assert all(event["choices"] and "usage" not in event for event in found)


def test_logprobs_without_top_have_empty_top_lists(served: Served) -> None:
    """http_behaviours 1."""
    [choice] = chat(served, logprobs=True).choices
    ids = [*tokenizer().encode(REPLY, False), 2]
    assert [entry.token for entry in choice.logprobs.content] == [
        tokenizer().decode_token(i) for i in ids
    ]
    for token_id, entry in zip(ids, choice.logprobs.content, strict=True):
        assert entry.top_logprobs == []
        assert entry.logprob == pytest.approx(-token_id / 1000)
        assert bytes(entry.bytes) == tokenizer().token_bytes(token_id)
    assert chat(served).choices[0].logprobs is None


def test_the_sampled_token_joins_the_top_list(served: Served) -> None:
    """http_behaviours 2: the fake engine gives the sampled token rank 2."""
    [choice] = chat(served, logprobs=True, top_logprobs=1).choices
    for entry in choice.logprobs.content:
        assert len(entry.top_logprobs) == 2
        assert entry.top_logprobs[1].token == entry.token
    [choice] = chat(served, logprobs="true", top_logprobs=3).choices
    for entry in choice.logprobs.content:
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[1].token == entry.token


def test_tokens_as_token_ids(served: Served) -> None:
    options = {"return_tokens_as_token_ids": True}
    [choice] = chat(served, logprobs=True, top_logprobs=2, extra_body=options).choices
    ids = [*tokenizer().encode(REPLY, False), 2]
    assert [entry.token for entry in choice.logprobs.content] == [f"token_id:{i}" for i in ids]
    assert choice.logprobs.content[0].top_logprobs[0].token.startswith("token_id:")


def test_prompt_logprobs(served: Served) -> None:
    answer = chat(served, extra_body={"prompt_logprobs": 1})
    prompt = memoryview(served.engine.seen[0].prompt_token_ids).cast("i").tolist()
    assert answer.prompt_logprobs[0] is None
    assert len(answer.prompt_logprobs) == len(prompt)
    for token_id, entry in zip(prompt[1:], answer.prompt_logprobs[1:], strict=True):
        assert entry[str(token_id)]["decoded_token"] == tokenizer().decode_token(token_id)
        assert entry[str(token_id)]["rank"] == 2


def test_token_ids_are_returned_when_asked(served: Served) -> None:
    answer = chat(served, extra_body={"return_token_ids": True})
    ids = [*tokenizer().encode(REPLY, False), 2]
    prompt = memoryview(served.engine.seen[0].prompt_token_ids).cast("i").tolist()
    assert answer.choices[0].token_ids == ids
    assert answer.prompt_token_ids == prompt
    found = events(served, {"messages": HI, "return_token_ids": True})
    assert found[0]["prompt_token_ids"] == prompt
    assert [i for e in found for c in e["choices"] for i in c.get("token_ids", ())] == ids


def test_prompt_text_is_returned_when_asked(served: Served) -> None:
    answer = chat(served, extra_body={"return_prompt_text": True})
    assert answer.prompt_text.endswith("<|im_start|>assistant\n")
    assert chat(served).prompt_text is None


def test_text_parts_are_joined(served: Served) -> None:
    parts = [{"type": "text", "text": "What is"}, {"type": "text", "text": "this?"}]
    chat(served, messages=[{"role": "user", "content": parts}])
    ids = memoryview(served.engine.seen[0].prompt_token_ids).cast("i").tolist()
    assert "What is\nthis?" in tokenizer().decode(ids, False)


def test_continuing_the_final_message_and_its_echo(served: Served) -> None:
    messages = [*HI, {"role": "assistant", "content": "Well: "}]
    options = {"add_generation_prompt": False, "continue_final_message": True, "echo": True}
    answer = chat(served, messages=messages, extra_body=options)
    assert answer.choices[0].message.content == "Well: " + REPLY
    ids = memoryview(served.engine.seen[0].prompt_token_ids).cast("i").tolist()
    assert tokenizer().decode(ids, False).endswith("<|im_start|>assistant\nWell: ")
    found = events(served, {"messages": messages, **options})
    texts = [c["delta"].get("content", "") for e in found for c in e["choices"]]
    assert "".join(texts) == "Well: " + REPLY
    # An answer by another role than the last message's goes on with nothing.
    answer = chat(served, extra_body={"echo": True})
    assert answer.choices[0].message.content == REPLY


def test_max_completion_tokens_wins_over_max_tokens(served: Served) -> None:
    answer = chat(served, max_tokens=9, max_completion_tokens=3)
    assert answer.usage.completion_tokens == 3
    assert answer.choices[0].finish_reason == "length"
    assert chat(served, max_tokens=4).usage.completion_tokens == 4


def test_stop_strings_and_stop_tokens(served: Served) -> None:
    [choice] = chat(served, stop=["Paris"]).choices
    assert choice.message.content == "The capital of France is "
    assert (choice.finish_reason, choice.stop_reason) == ("stop", "Paris")
    kept = chat(served, stop="Paris", extra_body={"include_stop_str_in_output": True})
    assert kept.choices[0].message.content == "The capital of France is Paris"
    comma = tokenizer().encode(",", False)
    [choice] = chat(served, extra_body={"stop_token_ids": comma}).choices
    assert choice.message.content == "The capital of France is Paris"
    assert (choice.finish_reason, choice.stop_reason) == ("stop", comma[0])


def test_every_sampling_field_reaches_the_engine(served: Served) -> None:
    chat(
        served,
        n=2,
        temperature=0.5,
        top_p=0.9,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        seed=7,
        max_tokens=9,
        logit_bias={"5": 1.5},
        extra_body={
            "top_k": 11,
            "min_p": 0.05,
            "repetition_penalty": 1.1,
            "min_tokens": 3,
            "ignore_eos": True,
            "allowed_token_ids": [5, 6],
            "bad_words": ["Berlin"],
            "skip_special_tokens": False,
            "spaces_between_special_tokens": False,
            "priority": 4,
            "cache_salt": "mine",
        },
    )
    first, second = served.engine.seen
    got = first.sampling
    assert (got.temperature, got.top_p, got.top_k, got.min_p) == (0.5, 0.9, 11, 0.05)
    assert (got.presence_penalty, got.frequency_penalty) == (0.1, 0.2)
    assert (got.repetition_penalty, got.min_tokens, got.max_tokens) == (1.1, 3, 9)
    assert (got.ignore_eos, got.logit_bias, got.allowed_token_ids) == (True, {5: 1.5}, [5, 6])
    assert (got.skip_special_tokens, got.spaces_between_special_tokens) == (False, False)
    assert (got.seed, second.sampling.seed) == (7, 8)
    assert (first.priority, first.cache_salt) == (4, "mine")
    assert tokenizer().encode("Berlin", False) in first.bad_words_token_ids


def test_logit_bias_is_kept_in_range(served: Served) -> None:
    chat(served, logit_bias={"5": 500, "6": -500, "7": 1})
    assert served.engine.seen[0].sampling.logit_bias == {5: 100, 6: -100, 7: 1}


def test_fields_without_effect_are_accepted(served: Served) -> None:
    answer = chat(
        served,
        user="u",
        store=False,
        metadata={"a": "b"},
        service_tier="auto",
        parallel_tool_calls=True,
        tool_choice="none",
        response_format={"type": "text"},
        extra_body={"session_id": "s", "include_reasoning": True},
    )
    assert answer.choices[0].message.content == REPLY


def test_an_unknown_field_is_ignored_with_one_warning(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        answer = chat(served, extra_body={"no_such_field": 1})
        assert answer.choices[0].message.content == REPLY
    assert sum("no_such_field" in record.message for record in caplog.records) == 1


def test_reasoning_effort_and_kwargs_reach_the_template() -> None:
    template = "{{ reasoning_effort }}/{{ mood }}/{{ documents[0].text }}/{{ messages[0].content }}"
    server = ServerConfig(default_chat_template_kwargs={"mood": "calm", "reasoning_effort": "low"})
    with serve(server, chat_template=template) as served:
        body: dict[str, Any] = {"documents": [{"title": "t", "text": "paper"}]}
        answer = chat(served, extra_body={**body, "return_prompt_text": True})
        assert answer.prompt_text == f"low/calm/paper/{HI[0]['content']}"
        body |= {"chat_template_kwargs": {"mood": "wild"}, "return_prompt_text": True}
        answer = chat(served, reasoning_effort="high", extra_body=body)
        assert answer.prompt_text == f"high/wild/paper/{HI[0]['content']}"


def test_a_request_may_bring_its_template_only_if_trusted(served: Served) -> None:
    body = {"chat_template": "{{ messages[0].content }}!", "return_prompt_text": True}
    with pytest.raises(openai.BadRequestError, match="--trust-request-chat-template"):
        chat(served, extra_body=body)
    with serve(ServerConfig(trust_request_chat_template=True)) as trusting:
        assert chat(trusting, extra_body=body).prompt_text == HI[0]["content"] + "!"


@pytest.mark.parametrize(("given", "want"), [("-7", -7), ("soon", 4), ("9" * 30, 4), ("", 4)])
def test_a_header_may_set_the_priority(served: Served, given: str, want: int) -> None:
    for path, body in (
        ("/v1/chat/completions", {"messages": HI, "priority": 4}),
        ("/v1/completions", {"prompt": "hi", "priority": 4}),
        ("/v1/responses", {"input": "hi", "priority": 4}),
    ):
        assert served.post(path, body, headers={"X-Vllm-Priority": given}).status_code == 200
        assert served.engine.seen[-1].priority == want


def test_a_server_without_a_tokenizer_refuses_chat(served: Served) -> None:
    with serve(with_tokenizer=False) as bare:
        with pytest.raises(openai.BadRequestError, match="No tokenizer is loaded"):
            chat(bare)
        answer = bare.client().completions.create(model=MODEL, prompt=[5, 6, 7])
        assert answer.choices[0].text == ""
        assert answer.usage is not None
        assert answer.usage.completion_tokens > 1


def test_the_model_may_have_defaults() -> None:
    defaults = {"temperature": 0.25, "top_p": 0.75, "max_tokens": 5}
    with serve(defaults=defaults) as served:
        assert chat(served).usage.completion_tokens == 5
        assert served.engine.seen[-1].sampling.temperature == 0.25
        # http_behaviours 6: the default limits only what names no maximum.
        assert chat(served, max_tokens=8, temperature=0).usage.completion_tokens == 8
        assert served.engine.seen[-1].sampling.temperature == 0
        assert served.engine.seen[-1].sampling.top_p == 0.75
        with pytest.raises(openai.BadRequestError, match="min_tokens"):
            chat(served, extra_body={"min_tokens": 6})


def test_a_default_maximum_shrinks_to_the_room_that_is_left() -> None:
    with serve(defaults={"max_tokens": 10_000}) as served:
        assert chat(served).choices[0].finish_reason == "stop"
        assert served.engine.seen[-1].max_total_tokens == LIMITS.max_model_len


def test_a_maximum_shrinks_to_the_room_that_is_left(served: Served) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        chat(served, **{name: LIMITS.max_model_len})
        assert served.engine.seen[-1].max_total_tokens == LIMITS.max_model_len


def test_the_operators_maximum_lowers_the_requests() -> None:
    with serve(overriding={"max_new_tokens": 5}) as served:
        assert chat(served).usage.completion_tokens == 5
        assert chat(served, max_tokens=8).usage.completion_tokens == 5
        assert chat(served, max_tokens=3).usage.completion_tokens == 3
        with pytest.raises(openai.BadRequestError, match="min_tokens"):
            chat(served, max_tokens=8, extra_body={"min_tokens": 6})


def test_cached_tokens_are_reported_with_the_flag() -> None:
    with serve(ServerConfig(enable_prompt_tokens_details=True)) as served:
        first, second = chat(served), chat(served)
        assert first.usage.prompt_tokens_details.cached_tokens == 0
        prompt = second.usage.prompt_tokens
        assert second.usage.prompt_tokens_details.cached_tokens == (prompt - 1) // 16 * 16 > 0
        options = {"include_usage": True}
        last = list(chat(served, stream=True, stream_options=options))[-1]
        assert last.usage.prompt_tokens_details == second.usage.prompt_tokens_details


def test_usage_can_be_forced() -> None:
    with serve(ServerConfig(enable_force_include_usage=True)) as served:
        found = events(served, {"messages": HI})
        assert all(event["usage"] for event in found)
        assert found[-1]["usage"]["completion_tokens"] > 1


def test_the_answers_role_can_be_set() -> None:
    with serve(ServerConfig(response_role="scribe")) as served:
        assert served.post("/v1/chat/completions", {"messages": HI}).json()["choices"][0][
            "message"
        ]["role"] == ("scribe")
        assert events(served, {"messages": HI})[0]["choices"][0]["delta"]["role"] == "scribe"


def test_long_and_truncated_prompts(served: Served) -> None:
    text = "word " * 100
    keep: dict[str, Any] = {"truncate_prompt_tokens": 10, "max_tokens": 2}
    for side, want in ((None, slice(-10, None)), ("left", slice(-10, None)), ("right", slice(10))):
        served.engine.seen.clear()
        body = {"messages": [{"role": "user", "content": text}], "truncation_side": side, **keep}
        answer = served.post("/v1/chat/completions", body).json()
        assert answer["usage"]["prompt_tokens"] == 10
        full = tokenizer().encode(
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
            f"Face<|im_end|>\n<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n",
            False,
        )
        ids = memoryview(served.engine.seen[0].prompt_token_ids).cast("i").tolist()
        assert ids == full[want]
    body = {"messages": [{"role": "user", "content": text * 9}], "truncate_prompt_tokens": -1}
    usage = served.post("/v1/chat/completions", body).json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (LIMITS.max_model_len - 1, 1)


def test_special_characters_survive(served: Served) -> None:
    text = 'Zeile\n"zitiert" \\ \t 日本語 🦊 </script> \u2028 é'
    served.engine.script = reply_with(text)
    assert chat(served).choices[0].message.content == text
    chunks = chat(served, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == text


def test_a_failure_of_this_request_alone(served: Served) -> None:
    served.engine.failure = "the kernel said no"
    with pytest.raises(openai.InternalServerError, match="the kernel said no") as caught:
        chat(served)
    assert caught.value.status_code == 500
    # Nothing had been sent, so a stream fails with a status too.
    with pytest.raises(openai.InternalServerError, match="the kernel said no"):
        chat(served, stream=True)
    served.engine.failure = None
    assert chat(served).choices[0].message.content == REPLY


def test_a_failure_inside_a_stream_is_an_event(served: Served) -> None:
    served.engine.pause = 0.01
    stream = chat(served, stream=True)
    next(stream)
    served.engine.failure = "the kernel said no"
    with pytest.raises(openai.APIError, match="the kernel said no"):
        list(stream)
    served.engine.failure = None
    served.engine.pause = 0.0


def test_no_engine_is_a_503(served: Served) -> None:
    served.engine.down = "no engine will come"
    with pytest.raises(openai.InternalServerError, match="no engine will come") as caught:
        chat(served)
    assert caught.value.status_code == 503
    assert served.get("/health").status_code == 503


def test_the_async_client(served: Served) -> None:
    import asyncio

    async def main() -> list[str]:
        client = openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none")

        async def one(i: int) -> str:
            stream = await client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": str(i)}], stream=True
            )
            return "".join([c.choices[0].delta.content or "" async for c in stream])

        return await asyncio.gather(*(one(i) for i in range(32)))

    assert asyncio.run(main()) == [REPLY] * 32


TALKS: list[Any] = [
    HI,
    [{"role": "system", "content": "Be brief."}, *HI],
    [{"role": "user", "content": "x"}],
]


def test_a_batch_is_answered_in_order(served: Served) -> None:
    replies = ["one", "two and more", "three"]
    scripts = [reply_with(text) for text in replies]

    def script(request: Any) -> list[int]:
        return scripts[int(request.request_id.rpartition("_")[2])](request)

    served.engine.script = script
    path = "/v1/chat/completions/batch"
    answer = served.post(path, {"model": MODEL, "messages": TALKS}).json()
    assert [c["index"] for c in answer["choices"]] == [0, 1, 2]
    assert [c["message"]["content"] for c in answer["choices"]] == replies
    assert answer["object"] == "chat.completion"
    prompts = [len(r.prompt_token_ids) // 4 for r in served.engine.seen]
    assert answer["usage"]["prompt_tokens"] == sum(prompts)
    num_tokens = sum(len(tokenizer().encode(text, False)) + 1 for text in replies)
    assert answer["usage"]["completion_tokens"] == num_tokens


def test_a_batch_of_one_is_a_chat(served: Served) -> None:
    options = {"logprobs": True, "top_logprobs": 2, "n": 2, "return_token_ids": True}
    alone = served.post("/v1/chat/completions", {"messages": HI, **options}).json()
    batch = served.post("/v1/chat/completions/batch", {"messages": [HI], **options}).json()
    for volatile in ("id", "created"):
        del alone[volatile], batch[volatile]
    assert batch == alone


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"messages": HI}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [[]]}, "messages"),
        ({"messages": [HI] * 1025}, "messages"),
        ({"stream": True}, "stream"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"return_prompt_text": True}, "return_prompt_text"),
    ],
)
def test_what_a_batch_cannot_do(served: Served, change: dict[str, Any], field: str) -> None:
    answer = served.post("/v1/chat/completions/batch", {"messages": TALKS, **change})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field
    assert not served.engine.seen
