"""Prompts of embedding rows: equal to the tokens whose rows they are, over HTTP and offline."""

from __future__ import annotations

import base64
import io
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from benchmarks.served import SMALL, Server, serve
from galley import LLM, SamplingParams
from galley.errors import InvalidRequest, Unsupported
from galley.frontend.saved_tensor import read_rows
from galley.loader import open_checkpoint
from galley.loader.source import Source
from galley.quant import read_weight
from tests.small_model import small_model

FLAG = "--enable-prompt-embeds"
GREEDY = {"temperature": 0, "max_tokens": 12, "logprobs": 2}
TEXT = "The capital of France is Paris. The capital of Italy is"
COLUMNS = 576


@pytest.fixture(scope="module")
def table() -> np.ndarray[Any, Any]:
    """The model's embedding, float32."""
    checkpoint = open_checkpoint(Source(small_model(), "gguf", "small"))
    return read_weight(checkpoint.tensor("model.embed_tokens.weight")).to_float32()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve(str(small_model()), *SMALL, FLAG) as server:
        yield server


def saved(rows: np.ndarray[Any, Any], **options: Any) -> str:
    file = io.BytesIO()
    torch.save(torch.from_numpy(rows), file, **options)
    return base64.b64encode(file.getvalue()).decode()


def post(server: Server, path: str, status: int = 200, **body: Any) -> Any:
    answer = httpx.post(f"{server.url}{path}", json=body, timeout=120)
    assert answer.status_code == status, answer.text
    return answer.json()


def told(answer: Any) -> list[Any]:
    names = ("text", "logprobs", "finish_reason", "message")
    return [{name: choice.get(name) for name in names} for choice in answer["choices"]]


def ids_of(server: Server, **body: Any) -> list[int]:
    return list(post(server, "/tokenize", **body)["tokens"])


def test_rows_of_tokens_answer_as_the_tokens(server: Server, table: Any) -> None:
    ids = ids_of(server, prompt=TEXT)
    whole = post(server, "/v1/completions", prompt=[ids, ids], **GREEDY)
    both = [saved(table[ids]), saved(table[ids][None])]
    given = post(server, "/v1/completions", prompt="", prompt_embeds=both, **GREEDY)
    assert told(given) == told(whole)
    assert given["usage"] == whole["usage"]
    # The prefix cache tells contents apart: these rows have the same token ids.
    other = post(server, "/v1/completions", prompt_embeds=saved(table[ids[::-1]]), **GREEDY)
    assert told(other) == told(post(server, "/v1/completions", prompt=ids[::-1], **GREEDY))
    mixed = post(server, "/v1/completions", prompt=[ids], prompt_embeds=both[0], **GREEDY)
    assert told(mixed) == told(whole)


def test_parts_of_a_conversation(server: Server, table: Any) -> None:
    question = "Name a colour of the rainbow."
    ids = ids_of(server, prompt=question, add_special_tokens=False)
    ask = {"temperature": 0, "max_tokens": 8, "logprobs": True}
    text = [{"role": "user", "content": question}]
    part = {"type": "prompt_embeds", "data": saved(table[ids])}
    rows = [{"role": "user", "content": [part]}]
    path = "/v1/chat/completions"
    assert told(post(server, path, messages=rows, **ask)) == told(
        post(server, path, messages=text, **ask)
    )


def test_a_killed_engine_goes_on_from_the_rows(server: Server, table: Any) -> None:
    ids = ids_of(server, prompt=TEXT)
    body = {"temperature": 0, "max_tokens": 200, "ignore_eos": True}
    whole = post(server, "/v1/completions", prompt=ids, **body)
    stream = {**body, "prompt_embeds": saved(table[ids]), "stream": True}
    text, killed = "", False
    with httpx.stream("POST", f"{server.url}/v1/completions", json=stream, timeout=120) as lines:
        for line in lines.iter_lines():
            if line.startswith("data: {"):
                text += httpx.Response(200, text=line[6:]).json()["choices"][0]["text"]
                if not killed and len(text) > 40:
                    os.kill(engine_pid(server), signal.SIGKILL)
                    killed = True
    assert killed
    assert text == whole["choices"][0]["text"]


def engine_pid(server: Server) -> int:
    [pid] = [
        pid
        for pid in server.pids()
        if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"Galley::EngineCore")
    ]
    return pid


@pytest.mark.parametrize(
    "make",
    [
        lambda rows: base64.b64encode(b"no zip").decode(),
        lambda rows: "not base64!",
        lambda rows: saved(rows[:, :5]),
        lambda rows: saved(rows.astype(np.float64)),
        lambda rows: saved(rows * np.float32("nan")),
        lambda rows: saved(np.repeat(rows, 300, axis=0)),
    ],
)
def test_bad_tensors_are_refused(server: Server, table: Any, make: Any) -> None:
    error = post(server, "/v1/completions", 400, prompt_embeds=make(table[:10]))["error"]
    assert error["param"] == "prompt_embeds", error


def test_what_rows_cannot_have_is_refused(server: Server, table: Any) -> None:
    file = saved(table[:4])
    for more in ({"echo": True}, {"prompt_logprobs": 1}, {"truncate_prompt_tokens": 2}):
        post(server, "/v1/completions", 400, prompt_embeds=file, **more)
    post(server, "/v1/completions", 400, prompt_embeds=[])
    post(server, "/v1/completions", 400)


def test_offline(table: Any) -> None:
    small = {"max_model_len": 256, "kv_cache_memory_bytes": "64M"}
    llm = LLM(str(small_model()), enable_prompt_embeds=True, **small)
    ids = llm.get_tokenizer().encode(TEXT)
    params = SamplingParams(temperature=0, max_tokens=8, logprobs=1)
    prompts: list[Any] = [
        {"prompt_token_ids": ids},
        {"prompt_embeds": table[ids]},
        {"prompt_embeds": torch.from_numpy(table[ids])},
        {
            "prompt_token_ids": [*ids[:3], 0, *ids[4:]],
            "prompt_embeds": table[ids[3:4]],
            "embeds_at": [3],
        },
    ]
    first, *others = llm.generate(prompts, params, use_tqdm=False)
    for other in others:
        assert other.outputs[0].token_ids == first.outputs[0].token_ids
        assert other.outputs[0].logprobs == first.outputs[0].logprobs
    with pytest.raises(InvalidRequest, match="576 columns"):
        llm.generate({"prompt_embeds": table[ids][:, :3]}, params)
    with pytest.raises(InvalidRequest, match="ascending"):
        llm.generate({**prompts[3], "embeds_at": [99]}, params)
    plain = LLM(str(small_model()), **small)
    with pytest.raises(Unsupported, match="--enable-prompt-embeds"):
        plain.generate({"prompt_embeds": table[ids]}, params)


def test_the_reader_reads_what_torch_saves() -> None:
    values = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    for tensor in (values, values.half(), values.bfloat16(), torch.nn.Parameter(values)):
        for view in (tensor, tensor.t().contiguous().t(), tensor[1:3]):
            file = io.BytesIO()
            torch.save(view, file)
            assert (read_rows(file.getvalue(), 6, 4) == view.detach().float().numpy()).all()
    expanded = torch.ones(1).expand(2, 6)
    file = io.BytesIO()
    torch.save(expanded, file)
    assert (read_rows(file.getvalue(), 6, 4) == 1).all()
    for wrong in ([values, values], {"a": values}, values.to_sparse(), "text", values.int()):
        file = io.BytesIO()
        torch.save(wrong, file)
        with pytest.raises(ValueError, match=r"must|holds|damaged"):
            read_rows(file.getvalue(), 6, 4)
    whole = io.BytesIO()
    torch.save(values, whole)
    for cut in range(0, len(whole.getvalue()), 7):
        for data in (
            whole.getvalue()[:cut],
            whole.getvalue()[:cut] + b"\xff" + whole.getvalue()[cut + 1 :],
        ):
            try:
                read_rows(data, 6, 4)
            except ValueError:
                continue
