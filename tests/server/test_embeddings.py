"""/v1/embeddings of a decoder, from a client's socket to the engine, and what replaces it."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, cast

import httpx
import ml_dtypes
import numpy as np
import openai
import pytest
import torch
import transformers

from galley import LLM, PoolingParams, SamplingParams
from galley.errors import ConfigError, InvalidRequest, Unsupported
from tests.launcher.serving import ENGINE
from tests.launcher.test_supervisor import children_of, until
from tests.models.checkpoints import make
from tests.models.encoders import ENCODERS
from tests.server.test_disconnect import send, wait_for
from tests.structured.tiny import VOCAB, write_tiny

TEXTS = ["the quick brown fox", "a", "jumps over the lazy dog " * 9, "yes or no, true or false"]
FLAGS = (
    "--kv-cache-memory-bytes 16m --max-model-len 256 --max-num-batched-tokens 64 --dtype float32"
)
NAME = "embedder"


def write_model(folder: Path) -> Path:
    """A Llama with random weights, whose tokenizer frames a text with <s> and </s>."""
    write_tiny(folder, max_position_embeddings=512)
    config = transformers.AutoConfig.from_pretrained(folder)
    torch.manual_seed(1)
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    return folder


class Embedder:
    """A server with --runner pooling."""

    def __init__(self, folder: Path, flags: str = FLAGS, *more: str) -> None:
        command = [sys.executable, "-m", "galley", "serve", str(folder), *flags.split(), *more]
        command += ["--runner", "pooling", "--port", "0", "--host", "127.0.0.1"]
        command += ["--served-model-name", NAME, "--max-num-seqs", "8"]
        self.child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.child.stderr is not None
        lines = []
        for line in self.child.stderr:
            lines.append(line)
            if found := re.search(r"serving at http://127.0.0.1:(\d+)", line):
                break
        else:
            pytest.fail("".join(lines))
        self.port = int(found[1])
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.child.stderr.read, daemon=True).start()

    def stop(self) -> None:
        self.child.send_signal(signal.SIGTERM)
        self.child.wait(60)

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)

    def ask(self, **body: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/embeddings", json=body, timeout=60)

    def vectors(self, given: Any, **body: Any) -> list[list[float]]:
        reply = self.ask(input=given, **body)
        assert reply.status_code == 200, reply.text
        return [entry["embedding"] for entry in reply.json()["data"]]

    def aborted(self) -> float:
        text = httpx.get(f"{self.url}/metrics").text
        found = re.search(r'^vllm:request_success_total\{.*"abort".*\} (\S+)$', text, re.M)
        return float(found[1]) if found else 0.0

    def engine(self) -> int:
        return until(lambda: children_of(self.child.pid).get(ENGINE))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("embedder"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Embedder]:
    server = Embedder(folder)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    flags = {
        "kv_cache_memory_bytes": 16 << 20,
        "max_model_len": 256,
        "num_threads": 1,
        "dtype": "float32",
    }
    with LLM(str(folder), runner="pooling", **flags) as llm:
        yield llm


def hidden_states(folder: Path, text: str) -> torch.Tensor:
    """transformers' final hidden states of a text, [tokens, hidden]."""
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    model = transformers.LlamaModel.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.tensor([tokenizer(text).input_ids])).last_hidden_state[0]


def test_vectors_are_those_of_transformers(server: Embedder, folder: Path) -> None:
    answer = server.client().embeddings.create(model=NAME, input=TEXTS)
    tokens = 0
    for text, entry in zip(TEXTS, answer.data, strict=True):
        hidden = hidden_states(folder, text)
        want = hidden[-1] / hidden[-1].norm()
        np.testing.assert_allclose(entry.embedding, want, atol=1e-4)
        tokens += len(hidden)
    assert [entry.index for entry in answer.data] == [0, 1, 2, 3]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == tokens
    assert answer.model == NAME


def test_alone_in_a_batch_and_beside_others_the_bits_are_the_same(server: Embedder) -> None:
    alone = [server.vectors(text)[0] for text in TEXTS]
    assert server.vectors(TEXTS[::-1])[::-1] == alone
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: server.vectors(TEXTS), range(8)):
            assert got == alone
    texts = [f"{TEXTS[i % 4]} {i}" for i in range(400)]  # tokenised in a thread
    many = server.vectors(texts)
    assert many[::57] == [server.vectors(text)[0] for text in texts[::57]]


def test_texts_and_token_ids_in_all_forms(server: Embedder, folder: Path) -> None:
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    ids = [tokenizer(text).input_ids for text in TEXTS]
    want = server.vectors(TEXTS)
    assert server.vectors(ids) == want
    assert server.vectors(ids[0]) == want[:1]
    assert server.vectors(ids[0][1:-1]) == server.vectors(TEXTS[0], add_special_tokens=False)


def test_base64_holds_the_same_numbers(server: Embedder) -> None:
    floats = np.array(server.vectors(TEXTS[0])[0], np.float32)
    for dtype, options in (
        ("<f4", {}),
        (">f4", {"endianness": "big"}),
        ("<f2", {"embed_dtype": "float16", "endianness": "little"}),
    ):
        (text,) = server.vectors(TEXTS[0], encoding_format="base64", **options)
        got = np.frombuffer(base64.b64decode(text), dtype)
        np.testing.assert_array_equal(got, floats.astype(dtype))


def test_truncation_keeps_the_tokens_that_the_tokenizer_adds(server: Embedder) -> None:
    first, last = TEXTS[0][:2], TEXTS[0][-2:]
    ids = httpx.post(f"{server.url}/tokenize", json={"prompt": TEXTS[0]}).json()["tokens"]
    assert ids[0] == 0
    assert ids[-1] == 1
    assert (first, last) == ("th", "ox")
    cut = server.vectors(TEXTS[0], truncate_prompt_tokens=4)
    assert cut == server.vectors([*ids[:3], 1])
    left = server.vectors(TEXTS[0], truncate_prompt_tokens=4, truncation_side="left")
    assert left == server.vectors(ids[-4:])
    assert len(server.vectors("a b " * 400, truncate_prompt_tokens=-1)) == 1


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({"input": []}, "input", "at least one prompt"),
        ({"input": [[1], []]}, "input", "cannot be empty"),
        ({"input": ["a", [1]]}, "input", "mixture"),
        ({"input": [1, VOCAB]}, "input", "out of vocabulary"),
        ({"input": ["a", "b " * 300]}, "input", "maximum context length is 256"),
        ({"input": ["a"] * 1025}, "input", "limited to 1024"),
        ({}, "input", "required"),
        ({"messages": [{"role": "user"}], "input": "a"}, "input", "excludes"),
        ({"input": "a", "dimensions": 8}, "dimensions", "matryoshka"),
        ({"input": "a", "dimensions": 0}, "dimensions", "at least 1"),
        ({"input": "a", "encoding_format": "text"}, "encoding_format", "Invalid enum value"),
        ({"input": "a", "prompt_name": "q"}, "prompt_name", "not one of"),
        ({"input": "a", "padding": "max_length"}, "padding", "not padded"),
        ({"input": "a", "normalize": False}, "normalize", "use_activation"),
        ({"input": "a", "truncate_prompt_tokens": 300}, "truncate_prompt_tokens", "256"),
        ({"input": "a", "truncate_prompt_tokens": -2}, "truncate_prompt_tokens", "at least 1"),
    ],
)
def test_errors_name_the_field(
    server: Embedder, body: dict[str, Any], field: str, words: str
) -> None:
    reply = server.ask(**body)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == field
    assert words in reply.json()["error"]["message"]


def test_an_unknown_model_and_routes_that_generate_are_not_there(server: Embedder) -> None:
    assert server.ask(input="a", model="other").status_code == 404
    for path in ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages"):
        assert httpx.post(server.url + path, json={"prompt": "a"}).status_code == 404
    paths = httpx.get(f"{server.url}/openapi.json").json()["paths"]
    assert "/v1/embeddings" in paths
    assert "/v1/completions" not in paths


def test_a_request_outlives_its_engine(server: Embedder) -> None:
    want = server.vectors(TEXTS)
    engine = server.engine()
    os.kill(engine, signal.SIGSTOP)  # nothing is answered by this one
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.vectors, TEXTS)
        os.kill(engine, signal.SIGKILL)
        assert answer.result(60) == want
    assert server.engine() != engine


def test_a_client_that_goes_away_ends_its_request(server: Embedder) -> None:
    server.vectors("a")
    before, engine = server.aborted(), server.engine()
    os.kill(engine, signal.SIGSTOP)
    try:

        def leave() -> bool:
            """Whether a client that has left has ended requests that had reached the engine."""
            sock = send(cast(Any, server), "/v1/embeddings", {"model": NAME, "input": TEXTS})
            assert httpx.get(f"{server.url}/health").status_code == 200
            sock.close()
            return server.aborted() > before

        wait_for(leave)
    finally:
        os.kill(engine, signal.SIGCONT)
    assert len(server.vectors(TEXTS)) == len(TEXTS)


# ---------------------------------------------------------------- in Python


def test_offline_vectors_are_those_of_the_server(server: Embedder, llm: LLM) -> None:
    outputs = llm.embed(TEXTS, use_tqdm=False)
    assert [output.outputs.embedding for output in outputs] == server.vectors(TEXTS)
    assert outputs[0].outputs.hidden_size == 32
    assert outputs[0].finished
    pooled = llm.encode(TEXTS[0], pooling_task="embed", use_tqdm=False)
    assert pooled[0].outputs.data.tolist() == outputs[0].outputs.embedding
    assert pooled[0].prompt_token_ids == outputs[0].prompt_token_ids
    cut = llm.embed(TEXTS[0], tokenization_kwargs={"truncate_prompt_tokens": 4}, use_tqdm=False)
    assert [cut[0].outputs.embedding] == server.vectors(TEXTS[0], truncate_prompt_tokens=4)


def test_kinds_of_pooling(llm: LLM, folder: Path) -> None:
    hidden = hidden_states(folder, TEXTS[2])
    for kind, want in (("LAST", hidden[-1]), ("CLS", hidden[0]), ("MEAN", hidden.mean(0))):
        for _ in range(2):  # the second time the prefix cache could answer
            raw = PoolingParams(pooling=kind, use_activation=False)
            (output,) = llm.embed(TEXTS[2], pooling_params=raw, use_tqdm=False)
            np.testing.assert_allclose(output.outputs.embedding, want, atol=1e-4)


def test_each_kind_of_model_refuses_the_other_use(llm: LLM, folder: Path) -> None:
    for generate in (
        lambda: llm.generate("a", SamplingParams(max_tokens=1), use_tqdm=False),
        lambda: next(llm.stream("a")),
    ):
        with pytest.raises(Unsupported, match="runner='pooling'"):
            generate()
    with pytest.raises(InvalidRequest, match="task: 'classify'"):
        llm.encode("a", pooling_task="classify")
    with pytest.raises(InvalidRequest, match="matryoshka"):
        llm.embed("a", pooling_params=PoolingParams(dimensions=8))
    with (
        LLM(str(folder), kv_cache_memory_bytes=16 << 20, num_threads=1) as generating,
        pytest.raises(Unsupported, match="load it with runner='pooling'"),
    ):
        generating.embed("a")


def test_an_encoder_embeds_without_a_flag(tmp_path: Path) -> None:
    model = make(ENCODERS["bert"])
    model.save_pretrained(tmp_path)
    ids = [5, 6, 7, 8, 9]
    with torch.inference_mode():
        hidden = model.base_model(torch.tensor([ids])).last_hidden_state[0]
    with open_llm(tmp_path, skip_tokenizer_init=True) as llm:
        (output,) = llm.embed(ids, use_tqdm=False)
        np.testing.assert_allclose(
            output.outputs.embedding, hidden[0] / hidden[0].norm(), atol=1e-4
        )
        with pytest.raises(Unsupported, match="generates no text"):
            llm.generate(ids, use_tqdm=False)
    modules = [{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": "1"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "config.json").write_text(json.dumps({"pooling_mode": "mean"}))
    with open_llm(tmp_path, skip_tokenizer_init=True) as llm:
        (output,) = llm.embed(ids, use_tqdm=False)
        np.testing.assert_allclose(output.outputs.embedding, hidden.mean(0), atol=1e-4)
    with pytest.raises(ConfigError, match="BertModel is an encoder"):
        open_llm(tmp_path, runner="generate")


def test_other_routes_of_a_model_that_embeds(server: Embedder) -> None:
    floats = np.array(server.vectors(TEXTS[:2]), np.float32)
    post = partial(httpx.post, timeout=60)

    reply = post(f"{server.url}/pooling", json={"input": TEXTS[:2], "task": "embed"})
    assert [entry["data"] for entry in reply.json()["data"]] == floats.tolist()
    reply = post(f"{server.url}/pooling", json={"input": TEXTS[0], "task": "token_embed"})
    (entry,) = reply.json()["data"]
    assert entry["object"] == "pooling"
    assert entry["data"][-1] == floats[0].tolist()
    assert len(entry["data"]) == reply.json()["usage"]["prompt_tokens"]
    assert post(f"{server.url}/pooling", json={"input": "a", "task": "classify"}).status_code == 400
    assert post(f"{server.url}/classify", json={"input": "a"}).status_code == 400

    for format in ("bytes", "bytes_only"):
        reply = server.ask(input=TEXTS[:2], encoding_format=format, embed_dtype="bfloat16")
        got = np.frombuffer(reply.content, ml_dtypes.bfloat16)
        np.testing.assert_array_equal(got.reshape(2, -1), floats.astype(ml_dtypes.bfloat16))
        assert ("metadata" in reply.headers) == (format == "bytes")
    meta = json.loads(server.ask(input=TEXTS[:2], encoding_format="bytes").headers["metadata"])
    assert meta["data"][1] == {
        "index": 1,
        "embed_dtype": "float32",
        "endianness": "native",
        "start": 128,
        "end": 256,
        "shape": [32],
    }

    cosine = float(floats[0] @ floats[1])
    for path in ("/score", "/v1/score"):
        reply = post(server.url + path, json={"text_1": TEXTS[0], "text_2": TEXTS[:2]})
        scores = [entry["score"] for entry in reply.json()["data"]]
        np.testing.assert_allclose(scores, [1, cosine], atol=1e-6)
    body = {"query": TEXTS[0], "documents": [TEXTS[1], {"text": TEXTS[0]}], "top_n": 1}
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        (best,) = post(server.url + path, json=body).json()["results"]
        assert best["index"] == 1
        assert best["document"]["text"] == TEXTS[0]
        assert abs(best["relevance_score"] - 1) < 1e-6

    types = ["float", "base64", "binary", "ubinary"]
    body = {"texts": TEXTS[:2], "input_type": "search_query", "embedding_types": types}
    answer = post(f"{server.url}/v2/embed", json=body).json()
    assert answer["response_type"] == "embeddings_by_type"
    assert answer["embeddings"]["float"] == floats.tolist()
    raw = base64.b64decode(answer["embeddings"]["base64"][0])
    assert raw == floats[0].astype("<f4").tobytes()
    unsigned = np.packbits(floats > 0, axis=1)
    assert answer["embeddings"]["ubinary"] == unsigned.tolist()
    assert answer["embeddings"]["binary"] == (unsigned.astype(int) - 128).tolist()

    reply = post(f"{server.url}/invocations", json={"input": TEXTS[0]})
    assert reply.json()["data"][0]["embedding"] == floats[0].tolist()
    reply = post(f"{server.url}/invocations", json={"text_1": "a", "text_2": "a"})
    assert abs(reply.json()["data"][0]["score"] - 1) < 1e-6


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/score", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "text_1"),
        ("/score", {"queries": "a"}, "documents"),
        ("/score", {}, "text_1"),
        ("/score", {"text_1": "a", "text_2": ["a b " * 200]}, "text_2"),
        ("/rerank", {"query": "a", "documents": []}, "documents"),
        ("/rerank", {"query": "a", "documents": ["b"], "top_n": -1}, "top_n"),
        ("/rerank", {"query": "a", "documents": ["b"], "instruction": "c"}, "instruction"),
        ("/rerank", {"documents": ["b"]}, "query"),
        ("/v2/embed", {}, "texts"),
        ("/v2/embed", {"texts": ["a"], "images": ["b"]}, "images"),
        ("/v2/embed", {"texts": ["a"], "embedding_types": ["int8"]}, "embedding_types"),
        ("/v2/embed", {"texts": ["a"], "input_type": "poem"}, "input_type"),
        ("/v2/embed", {"texts": ["a b " * 200], "truncate": "NONE"}, "texts"),
        ("/pooling", {"input": "a", "task": "plugin"}, "task"),
        ("/v1/embeddings", {"messages": []}, "messages"),
    ],
)
def test_errors_of_other_routes_name_the_field(
    server: Embedder, path: str, body: dict[str, Any], field: str
) -> None:
    reply = httpx.post(server.url + path, json=body, timeout=60)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == field, reply.text


def test_conversations_are_embedded_by_a_template(server: Embedder) -> None:
    talk = [{"role": "user", "content": "yes"}]
    reply = server.ask(messages=talk)
    assert reply.status_code == 400  # the model has no template
    assert "template" in reply.json()["error"]["message"]


def test_scores_in_python(llm: LLM) -> None:
    outputs = llm.embed(TEXTS[:2], use_tqdm=False)
    a, b = (np.array(output.outputs.embedding) for output in outputs)
    scores = llm.score(TEXTS[0], TEXTS[:2], use_tqdm=False)
    np.testing.assert_allclose([s.outputs.score for s in scores], [1, a @ b], atol=1e-6)
    with pytest.raises(InvalidRequest, match="data_1 has 2, data_2 3"):
        llm.score(TEXTS[:2], TEXTS[:3])


def test_long_texts_in_parts(folder: Path) -> None:
    config = {"enable_chunked_processing": True, "max_embed_len": 300}
    text = "the quick brown fox " * 20
    with open_llm(folder, runner="pooling", pooler_config=config, max_model_len=64) as llm:
        (whole,) = llm.embed([text], use_tqdm=False)
        ids = whole.prompt_token_ids
        assert len(ids) > 64
        parts = [ids[at : at + 64] for at in range(0, len(ids), 64)]
        raw = PoolingParams(use_activation=False)
        outputs = llm.embed(parts, pooling_params=raw, use_tqdm=False)
        vectors = np.array([output.outputs.embedding for output in outputs])
        mean = np.average(vectors, axis=0, weights=[len(part) for part in parts])
        np.testing.assert_allclose(whole.outputs.embedding, mean / np.linalg.norm(mean), atol=1e-6)
        with pytest.raises(InvalidRequest, match="300 tokens"):
            llm.embed([text * 6])


def open_llm(folder: Path, **flags: Any) -> LLM:
    common = {"kv_cache_memory_bytes": 16 << 20, "num_threads": 1, "dtype": "float32"}
    return LLM(str(folder), **common, **flags)


def test_pooling_that_the_flags_ask_for(folder: Path) -> None:
    hidden = hidden_states(folder, TEXTS[0])
    config = {"pooling_type": "MEAN", "use_activation": False}
    matryoshka = {"matryoshka_dimensions": [8, 16]}
    with open_llm(folder, convert="embed", pooler_config=config, hf_overrides=matryoshka) as llm:
        (output,) = llm.embed(TEXTS[0], use_tqdm=False)
        np.testing.assert_allclose(output.outputs.embedding, hidden.mean(0), atol=1e-4)
        short = PoolingParams(dimensions=8, use_activation=True)
        (output,) = llm.embed(TEXTS[0], pooling_params=short, use_tqdm=False)
        want = hidden.mean(0)[:8] / hidden.mean(0)[:8].norm()
        np.testing.assert_allclose(output.outputs.embedding, want, atol=1e-4)
        with pytest.raises(InvalidRequest, match="8, 16 dimensions, got 9"):
            llm.embed(TEXTS[0], pooling_params=PoolingParams(dimensions=9))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"runner": "generate", "convert": "embed"}, "convert embed needs runner pooling"),
        ({"runner": "pooling", "convert": "none"}, "runner pooling needs convert embed"),
        ({"convert": "classification"}, "convert must be one of"),
        ({"pooler_config": {"pooling_type": "MEAN"}}, "pooler_config needs runner pooling"),
        ({"runner": "pooling", "pooler_config": {"pooling_type": "MAX"}}, "CLS, LAST, MEAN"),
        ({"runner": "pooling", "pooler_config": {"normalize": 1}}, "true or false"),
        ({"runner": "pooling", "pooler_config": {"step_tag_id": "a"}}, "whole number"),
    ],
)
def test_flags_that_contradict_are_refused(
    folder: Path, flags: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        open_llm(folder, **flags)
