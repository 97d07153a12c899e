"""Perplexity of each engine on the same text, to check that speed does not cost quality.

All use llama.cpp's rule: windows of 512 tokens, the second half of each is scored. Servers of
Galley and vLLM return log-probabilities of prompt tokens; llama.cpp has a program for perplexity;
OpenVINO GenAI supports neither. The reference is Galley's float32 PyTorch backend on the
dequantised weights.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import tempfile
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.engines import Server, lab, llama
from galley import LLM, SamplingParams
from galley.cli.bench.datasets.text import Corpus

WINDOW = 512
_LLAMA = re.compile(r"Final estimate: PPL = ([\d.]+)")


def windows(corpus: Corpus, count: int) -> list[list[int]]:
    """The first `count` windows of the text's tokens."""
    ids = corpus.tokenizer.encode(corpus.text, add_special_tokens=False)
    return [ids[i * WINDOW : (i + 1) * WINDOW] for i in range(count)]


def text_of(corpus: Corpus, count: int) -> str:
    """The text of these windows, and a little more that no window uses."""
    end = int(corpus.edge[count * WINDOW + WINDOW // 2])
    return corpus.data[:end].decode(errors="ignore")


def from_logprobs(scored: Sequence[float]) -> float:
    return math.exp(-sum(scored) / len(scored))


def second_half(ids: list[int], logprobs: Sequence[Any]) -> list[float]:
    """Log-probabilities of the tokens after the middle, of a prompt's list of {id: entry}."""
    scored = []
    for position in range(WINDOW // 2 + 1, WINDOW):
        entry, token = logprobs[position], ids[position]
        if str(token) in entry:  # JSON
            scored.append(float(entry[str(token)]["logprob"]))
        else:
            scored.append(float(entry[token].logprob))
    return scored


def of_server(server: Server, some: list[list[int]]) -> float:
    """Perplexity from `prompt_logprobs` of the completions API (Galley, vLLM)."""
    scored: list[float] = []
    for ids in some:
        body = {"model": server.engine.model, "prompt": ids, "max_tokens": 1, "prompt_logprobs": 0}
        request = urllib.request.Request(
            server.base + "/v1/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=600) as answer:
            choice = json.load(answer)["choices"][0]
        scored += second_half(ids, choice["prompt_logprobs"])
    return from_logprobs(scored)


def of_llama(weights: str, corpus: Corpus, count: int) -> float:
    """Perplexity from llama-perplexity, on the same text."""
    return of_llama_file(lab() / "weights" / weights, text_of(corpus, count), count)


def of_llama_file(weights: Path, text: str, count: int) -> float:
    """Perplexity of the first windows of a text from llama-perplexity."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.txt"
        path.write_text(text, encoding="utf-8")
        command = [str(llama("llama-perplexity")), "-m", str(weights), "-f", str(path)]
        command += ["-c", str(WINDOW), "-t", "2", "--chunks", str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    match = _LLAMA.search(done.stdout + done.stderr)
    if match is None:
        raise RuntimeError("llama-perplexity said no estimate")
    return float(match[1])


def of_reference(weights: str, some: list[list[int]]) -> float:
    """Perplexity of the PyTorch reference in float32, on the dequantised weights."""
    path = str(lab() / "weights" / weights)
    with LLM(path, backend="reference", dtype="float32", max_model_len=2 * WINDOW) as llm:
        return of_llm(llm, some)


def of_llm(llm: LLM, some: list[list[int]]) -> float:
    scored: list[float] = []
    params = SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=0)
    for output in llm.generate(some, params, use_tqdm=False):
        assert output.prompt_logprobs is not None
        scored += second_half(list(output.prompt_token_ids), output.prompt_logprobs)
    return from_logprobs(scored)
