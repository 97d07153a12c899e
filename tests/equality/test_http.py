"""The same over HTTP: sixty-four clients at once, each alone, and offline, get the same answers."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from galley import LLM, RequestOutput
from tests.equality.workload import MAX_TOKENS, STYLES, params, prompts
from tests.launcher.serving import Server
from tests.small_model import small_model

COUNT = 64
#: Those that are asked alone over HTTP, too: every style, chats and texts.
ONCE_MORE = range(0, COUNT, 3)
MODEL = "SmolLM2-135M-Instruct"
#: What the client's own signature has; the rest are extensions.
OPENAI = {"temperature", "top_p", "seed", "presence_penalty", "frequency_penalty", "logit_bias"}

#: Tokens, text, logprobs of the tokens, and how it ended.
Answer = tuple[list[int], str, list[float] | None, str]


@pytest.fixture(scope="module", params=["1", "2"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """With one API server, and with two that share the clients."""
    server = Server("--max-num-seqs", str(COUNT), "--api-server-count", request.param)
    yield server
    server.close()


def is_chat(i: int) -> bool:
    return i % 2 == 1


def fields(i: int) -> dict[str, Any]:
    """Request i's sampling parameters as the client's arguments."""
    style = dict(STYLES[i % len(STYLES)])
    logprobs = style.pop("logprobs", None)
    known = {name: value for name, value in style.items() if name in OPENAI}
    extra = {name: value for name, value in style.items() if name not in OPENAI}
    if logprobs is not None:
        known |= (
            {"logprobs": True, "top_logprobs": logprobs} if is_chat(i) else {"logprobs": logprobs}
        )
    if "logit_bias" in known:
        known["logit_bias"] = {str(token): bias for token, bias in known["logit_bias"].items()}
    extra |= {"ignore_eos": True, "return_token_ids": True}
    # Prompts' logprobs are not streamed.
    streamed = (i // 2) % 2 == 1 and "prompt_logprobs" not in extra
    return {**known, "max_tokens": MAX_TOKENS, "stream": streamed, "extra_body": extra}


def ask(url: str, i: int) -> Answer:
    """Request i from a client of its own."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        if is_chat(i):
            messages: Any = [{"role": "user", "content": prompts()[i]}]
            reply = client.chat.completions.create(model=MODEL, messages=messages, **fields(i))
        else:
            reply = client.completions.create(model=MODEL, prompt=prompts()[i], **fields(i))
        choices = [c.choices[0] for c in (reply if fields(i)["stream"] else [reply])]
    read = chat_piece if is_chat(i) else completion_piece
    pieces = [read(choice) for choice in choices]
    ids = [token for choice in choices for token in getattr(choice, "token_ids", None) or ()]
    logprobs = [value for _, values in pieces for value in values]
    text = "".join(text for text, _ in pieces)
    return ids, text, logprobs or None, choices[-1].finish_reason


def chat_piece(choice: Any) -> tuple[str, list[float]]:
    said = choice.delta if hasattr(choice, "delta") else choice.message
    entries = choice.logprobs.content if choice.logprobs else []
    return said.content or "", [entry.logprob for entry in entries]


def completion_piece(choice: Any) -> tuple[str, list[float]]:
    return choice.text, choice.logprobs.token_logprobs if choice.logprobs else []


@functools.cache
def offline() -> list[Answer]:
    def read(output: RequestOutput) -> Answer:
        (said,) = output.outputs
        logprobs = None
        if said.logprobs is not None:
            columns = zip(said.logprobs, said.token_ids, strict=True)
            logprobs = [column[token].logprob for column, token in columns]
        assert said.finish_reason is not None
        return said.token_ids, said.text, logprobs, said.finish_reason

    with LLM(str(small_model()), max_model_len=1024, kv_cache_memory_bytes=256 << 20) as llm:
        answers = []
        for i, (prompt, wanted) in enumerate(zip(prompts(), params(), strict=True)):
            if is_chat(i):
                (output,) = llm.chat([{"role": "user", "content": prompt}], wanted, use_tqdm=False)
            else:
                (output,) = llm.generate(prompt, wanted, use_tqdm=False)
            answers.append(read(output))
        return answers


def test_many_clients_one_client_and_no_server(server: Server) -> None:
    steps = "vllm:iteration_tokens_total_count"
    with ThreadPoolExecutor(COUNT) as pool:
        before = server.metric(steps)
        together = list(pool.map(lambda i: ask(server.url, i), range(COUNT)))
        taken = server.metric(steps) - before
    assert taken < COUNT * MAX_TOKENS / 4, "they were computed together"
    assert len({json.dumps(answer) for answer in together}) > COUNT / 2
    assert {len(ids) for ids, *_ in together} == {MAX_TOKENS}
    assert [ask(server.url, i) for i in ONCE_MORE] == [together[i] for i in ONCE_MORE]
    assert offline() == together
