"""`galley serve` with a configuration file and overriding flags: each setting takes effect."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from galley import LLM, SamplingParams
from galley.loader.source import default_model
from tests.launcher.serving import Server
from tests.models.checkpoints import CASES, make

CONFIG = """
model: {model}
served-model-name: [alpha, beta]
api-key: [first, second]
max_num_seqs: 2
max-num-batched-tokens: 64
long-prefill-token-threshold: 24
block-size: 32
prefix-caching-hash-algo: sha256_cbor
scheduling-policy: priority
enable-prompt-tokens-details: true
chat-template: {folder}/template.jinja
generation-config: {folder}
seed: 7
uvicorn-log-level: warning
"""
KEY = {"authorization": "Bearer second"}


class Client:
    """Client of a server that requires an API key."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def post(self, path: str, **body: Any) -> Any:
        reply = httpx.post(self.server.url + path, json=body, headers=KEY, timeout=60)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def metrics(self, pattern: str) -> list[str]:
        return re.findall(pattern, httpx.get(self.server.url + "/metrics").text)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("config")
    (folder / "template.jinja").write_text("<{{ messages[0].content }}>")
    (folder / "generation_config.json").write_text('{"max_new_tokens": 5, "top_k": 3}')
    file = folder / "serve.yaml"
    file.write_text(CONFIG.format(folder=folder, model=default_model()))
    flags = ["--max-num-seqs", "3", "--max-model-len", "600"]
    server = Server(*flags, model=["--config", str(file)])
    yield Client(server)
    server.close()


def test_engine_seed_samples_as_offline(client: Client) -> None:
    # The first request of all: the sample depends on the engine's seed and its number.
    answer = client.post("/v1/completions", prompt="A", max_tokens=12, temperature=1.0, top_k=0)
    with LLM(seed=7, max_model_len=600, kv_cache_memory_bytes="64m") as llm:
        (offline,) = llm.generate("A", SamplingParams(max_tokens=12), use_tqdm=False)
    assert answer["choices"][0]["text"] == offline.outputs[0].text


def test_names_keys_and_length(client: Client) -> None:
    url = client.server.url
    assert httpx.get(f"{url}/v1/models").status_code == 401
    assert httpx.get(f"{url}/health").status_code == 200
    models = httpx.get(f"{url}/v1/models", headers=KEY).json()["data"]
    assert [(m["id"], m["max_model_len"]) for m in models] == [("alpha", 600), ("beta", 600)]
    assert client.post("/v1/completions", model="beta", prompt="A", max_tokens=1)
    unknown = httpx.post(f"{url}/v1/completions", json={"model": "x", "prompt": "A"}, headers=KEY)
    assert unknown.status_code == 404
    long = httpx.post(f"{url}/v1/completions", json={"prompt": "word " * 700}, headers=KEY)
    assert long.status_code == 400
    assert "600" in long.json()["error"]["message"]


def test_template_and_defaults_of_the_configuration(client: Client) -> None:
    hi = [{"role": "user", "content": "hi"}]
    tokens = client.post("/tokenize", messages=hi, add_generation_prompt=False)["tokens"]
    assert client.post("/detokenize", tokens=tokens)["prompt"] == "<hi>"
    answer = client.post("/v1/chat/completions", messages=hi, ignore_eos=True)
    assert answer["usage"]["completion_tokens"] == 5
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["model"] == "alpha"


def test_cached_tokens_are_whole_blocks(client: Client) -> None:
    prompt = "The same beginning of a prompt, longer than two blocks of thirty-two. " * 8
    for cached in (0, None):
        usage = client.post("/v1/completions", prompt=prompt, max_tokens=1)["usage"]
        num_cached = usage["prompt_tokens_details"]["cached_tokens"]
        assert (
            num_cached == cached
            if cached is not None
            else num_cached >= 64 and num_cached % 32 == 0
        )


def test_step_size_is_limited(client: Client) -> None:
    with ThreadPoolExecutor(6) as pool:
        answers = [
            pool.submit(
                client.post, "/v1/completions", prompt="word " * 40, max_tokens=40, priority=i
            )
            for i in range(6)
        ]
        most = 0.0
        while not all(a.done() for a in answers):
            most = max(most, client.server.metric("vllm:num_requests_running"))
    assert 1 < most <= 3, "the command line wins over the file"
    (total,) = client.metrics(r"galley:step_tokens_count\{.*\} (\S+)")
    within = client.metrics(r'galley:step_tokens_bucket\{.*le="64.0".*\} (\S+)')
    assert within == [total]
    (info,) = client.metrics(r"vllm:cache_config_info\{(.*)\}")
    assert 'block_size="32"' in info
    assert 'prefix_caching_hash_algo="sha256_cbor"' in info


def test_another_checkpoint_on_another_backend(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint folder of transformers; expected tokens come from the reference. The backend
    says that it is not batch-invariant.
    """
    model = make(CASES["qwen3"])
    model.save_pretrained(tmp_path)
    flags = ["--backend", "reference", "--dtype", "float32", "--max-model-len", "64"]
    flags += ["--skip-tokenizer-init", "--kv-cache-memory-bytes", "8m"]
    server = Server(*flags, model=[str(tmp_path)])
    body = {"prompt": [5, 9, 77], "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    tokens = server.ask({**body, "return_token_ids": True}).json()["choices"][0]["token_ids"]
    assert httpx.get(f"{server.url}/version").json()["batch_invariant"] is False
    assert server.metric("galley:batch_invariant") == 0
    server.close()
    assert "an answer may depend on what else is computed" in capfd.readouterr().out
    with torch.inference_mode():
        logits = model(torch.tensor([[5, 9, 77, *tokens[:-1]]])).logits[0, 2:]
    assert tokens == logits.argmax(-1).tolist()
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "qwen3"
