"""/v1/completions through the real `openai` client."""

from __future__ import annotations

from array import array
from typing import Any

import openai
import pytest

from galley.request import Request
from galley.server.protocol.generation import Caps
from galley.text.fim import FimTokens
from tests.server.served import MODEL, REPLY, Served, serve, tokenizer
from tests.server.test_chat import events

EOS_TEXT = "<|im_end|>"


def complete(served: Served, prompt: Any = "Once upon", **options: Any) -> Any:
    return served.client().completions.create(model=MODEL, prompt=prompt, **options)


def prompts_of(served: Served) -> list[list[int]]:
    return [array("i", r.prompt_token_ids).tolist() for r in served.engine.seen]


def by_prompt(request: Request) -> list[int]:
    """An answer that names the prompt's length and the seed."""
    length = len(request.prompt_token_ids) // 4
    return tokenizer().encode(f"{length} tokens, seed {request.sampling.seed}", False)


def test_whole_answer(served: Served) -> None:
    answer = complete(served, max_tokens=50)
    assert answer.id.startswith("cmpl-")
    assert answer.object == "text_completion"
    [choice] = answer.choices
    assert (choice.text, choice.finish_reason, choice.logprobs) == (REPLY, "stop", None)
    assert answer.usage.completion_tokens == len(tokenizer().encode(REPLY, False)) + 1
    assert prompts_of(served) == [tokenizer().encode("Once upon")]


def test_parameters_of_a_transfer_come_back(served: Served) -> None:
    """There is no KV connector: nothing is transferred, and what was sent is in the answer."""
    given = {"do_remote_decode": True, "remote_engine_id": "a"}
    body = {"prompt": "Hi", "max_tokens": 2, "kv_transfer_params": given}
    assert served.post("/v1/completions", body).json()["kv_transfer_params"] == given
    talk = {"messages": [{"role": "user", "content": "Hi"}], "kv_transfer_params": given}
    assert served.post("/v1/chat/completions", talk).json()["kv_transfer_params"] == given
    messages = {**talk, "model": "tiny", "max_tokens": 2}
    assert served.post("/v1/messages", messages).json()["kv_transfer_params"] == given
    response = {"input": "Hi", "kv_transfer_params": given}
    assert served.post("/v1/responses", response).json()["kv_transfer_params"] == given


def test_sixteen_tokens_without_a_maximum(served: Served) -> None:
    served.engine.script = lambda request: [5] * 100
    assert complete(served).usage.completion_tokens == 16
    assert complete(served, max_tokens=None).usage.completion_tokens == 16


@pytest.mark.parametrize(
    ("prompt", "want"),
    [
        ("one two", [[[1197, 827]], 1]),
        (["one", "two"], [None, 2]),
        ([11, 12, 13], [[[11, 12, 13]], 1]),
        ([[11, 12], [13]], [[[11, 12], [13]], 2]),
    ],
)
def test_prompt_forms(served: Served, prompt: Any, want: Any) -> None:
    answer = complete(served, prompt, max_tokens=2)
    ids, count = want
    if isinstance(prompt, str):
        ids = [tokenizer().encode(prompt)]
    if ids is None:
        ids = [tokenizer().encode(p) for p in prompt]
    assert prompts_of(served) == ids
    assert [c.index for c in answer.choices] == list(range(count))
    assert answer.usage.prompt_tokens == sum(len(i) for i in ids)
    assert answer.usage.completion_tokens == 2 * count


def test_choices_of_a_batch_are_numbered_over_all_prompts(served: Served) -> None:
    served.engine.script = by_prompt
    prompts = [[11], [11, 12], [11, 12, 13]]
    want = [f"{i + 1} tokens, seed {5 + j}" for i in range(3) for j in range(2)]
    answer = complete(served, prompts, n=2, seed=5)
    assert [(c.index, c.text) for c in answer.choices] == list(enumerate(want))
    assert answer.usage.prompt_tokens == 6
    texts = dict.fromkeys(range(6), "")
    last = None
    options = {"include_usage": True}
    for chunk in complete(served, prompts, n=2, seed=5, stream=True, stream_options=options):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
        last = chunk.usage
    assert list(texts.values()) == want
    assert last == answer.usage


def test_the_prompt_that_fails_takes_the_others_back(served: Served) -> None:
    served.engine.hold = True
    with pytest.raises(openai.BadRequestError, match="out of vocabulary"):
        complete(served, [[5], [6], [10**6]])
    assert served.call(lambda: served.engine.num_unfinished) == 0
    assert len(served.engine.aborted) == 2


def test_echo(served: Served) -> None:
    assert complete(served, echo=True, max_tokens=50).choices[0].text == "Once upon" + REPLY
    ids = tokenizer().encode("Once upon")
    assert complete(served, ids, echo=True, max_tokens=50).choices[0].text == "Once upon" + REPLY
    texts = dict.fromkeys(range(2), "")
    for chunk in complete(served, ["a", "b"], echo=True, max_tokens=50, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == {0: "a" + REPLY, 1: "b" + REPLY}


def test_echo_with_logprobs_begins_with_null(served: Served) -> None:
    """http_behaviours 3."""
    [choice] = complete(served, echo=True, logprobs=1, max_tokens=50).choices
    prompt, reply = tokenizer().encode("Once upon"), [*tokenizer().encode(REPLY, False), 2]
    logprobs = choice.logprobs
    assert logprobs.tokens == [tokenizer().decode_token(i) for i in [*prompt, *reply]]
    assert logprobs.token_logprobs[0] is None
    assert logprobs.top_logprobs[0] is None
    assert None not in logprobs.token_logprobs[1:]
    for token, offset in zip(logprobs.tokens, logprobs.text_offset, strict=True):
        if token != EOS_TEXT:
            assert choice.text[offset:].startswith(token)


def test_echo_alone_computes_the_prompt(served: Served) -> None:
    answer = complete(served, echo=True, logprobs=0, max_tokens=0)
    [choice] = answer.choices
    assert choice.text == "Once upon"
    assert len(choice.logprobs.tokens) == answer.usage.prompt_tokens == 2
    assert answer.usage.completion_tokens == 0
    streamed = list(complete(served, echo=True, max_tokens=0, stream=True))
    assert "".join(c.choices[0].text for c in streamed) == "Once upon"


def test_no_logprobs_and_none_but_the_tokens(served: Served) -> None:
    """http_behaviours 1: `logprobs: 0` is not the same as none."""
    [choice] = complete(served, logprobs=0, max_tokens=50).choices
    for token, value, top in zip(
        choice.logprobs.tokens,
        choice.logprobs.token_logprobs,
        choice.logprobs.top_logprobs,
        strict=True,
    ):
        assert top == {token: value}
    assert complete(served).choices[0].logprobs is None


def test_the_sampled_token_joins_the_top(served: Served) -> None:
    """http_behaviours 2."""
    for asked, found in ((1, 2), (2, 2), (4, 4)):
        [choice] = complete(served, logprobs=asked, max_tokens=50).choices
        for token, top in zip(choice.logprobs.tokens, choice.logprobs.top_logprobs, strict=True):
            assert len(top) == found
            assert token in top


def test_streamed_logprobs_are_what_is_not_streamed(served: Served) -> None:
    whole = complete(served, echo=True, logprobs=2, max_tokens=50).choices[0].logprobs
    parts: dict[str, list[Any]] = {}
    for chunk in complete(served, echo=True, logprobs=2, max_tokens=50, stream=True):
        for name, values in chunk.choices[0].logprobs.model_dump().items():
            parts.setdefault(name, []).extend(values or ())
    assert parts == whole.model_dump()


def test_prompt_logprobs(served: Served) -> None:
    answer = complete(served, ["Once upon", "a"], extra_body={"prompt_logprobs": 0})
    first, second = answer.choices
    assert first.prompt_logprobs[0] is None
    [(token_id, entry)] = first.prompt_logprobs[1].items()
    assert int(token_id) == tokenizer().encode("Once upon")[1]
    assert entry["decoded_token"] == " upon"
    assert second.prompt_logprobs == [None]


def test_token_ids_are_returned_when_asked(served: Served) -> None:
    reply = [*tokenizer().encode(REPLY, False), 2]
    extra = {"return_token_ids": True}
    [choice] = complete(served, [5, 6], max_tokens=50, extra_body=extra).choices
    assert (choice.prompt_token_ids, choice.token_ids) == ([5, 6], reply)
    found = events(served, {"prompt": [5, 6], "max_tokens": 50, **extra}, path="/v1/completions")
    assert found[0]["choices"][0]["prompt_token_ids"] == [5, 6]
    assert "prompt_token_ids" not in found[-1]["choices"][0]
    assert [i for e in found for c in e["choices"] for i in c["token_ids"]] == reply


def test_continuous_usage(served: Served) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"prompt": "Once upon", "max_tokens": 50, "stream_options": options}
    found = events(served, body, path="/v1/completions")
    counts = [event["usage"]["completion_tokens"] for event in found]
    assert counts == sorted(counts)
    assert found[-1]["choices"] == []


def test_special_tokens_are_added_to_text_unless_refused(served: Served) -> None:
    complete(served, "a", extra_body={"add_special_tokens": False})
    complete(served, "a")
    assert prompts_of(served) == [tokenizer().encode("a", False), tokenizer().encode("a", True)]


def test_a_suffix_needs_fill_in_the_middle_tokens(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tokenizer().__dict__, "fim", None)
    with pytest.raises(openai.BadRequestError, match="fill-in-the-middle") as caught:
        complete(served, "def f(", suffix="return x")
    assert caught.value.param == "suffix"
    assert not served.engine.seen
    monkeypatch.setitem(tokenizer().__dict__, "fim", FimTokens(4, 5, 6))
    complete(served, "def f(", suffix="return x")
    before, after = (tokenizer().encode(t, False) for t in ("def f(", "return x"))
    assert prompts_of(served) == [[4, *before, 5, *after, 6]]


def test_a_long_text_is_tokenised_beside_the_loop() -> None:
    """Far more text than fits is refused with both numbers, and the server answers meanwhile."""
    with serve() as served:
        with pytest.raises(openai.BadRequestError) as caught:
            complete(served, "word " * 4_000)
        assert "256" in caught.value.message
        assert "4001 tokens" in caught.value.message
        with pytest.raises(openai.BadRequestError, match="at least"):
            complete(served, "word " * 2_000_000)
        kept = complete(served, "word " * 20_000, extra_body={"truncate_prompt_tokens": 5})
        assert kept.usage.prompt_tokens == 5
        assert complete(served).choices[0].text


def test_caps_come_from_the_environment() -> None:
    with serve(
        caps=Caps(n=2, prompts=3, stop_strings=1, bad_words=1, bad_words_tokens=5)
    ) as served:
        for field, options in (
            ("n", {"n": 3}),
            ("stop", {"stop": ["a", "b"]}),
            ("bad_words", {"extra_body": {"bad_words": ["a", "b"]}}),
            ("bad_words", {"extra_body": {"bad_words": ["a b c d e f g h i j"]}}),
        ):
            with pytest.raises(openai.BadRequestError, match="limited to") as caught:
                complete(served, **options)
            assert caught.value.param == field
        with pytest.raises(openai.BadRequestError, match="limited to 3 prompts"):
            complete(served, ["a"] * 4)
        assert len(complete(served, ["a"] * 3, n=2, seed=1, stop="x").choices) == 6
