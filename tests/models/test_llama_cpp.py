"""The same GGUF file in llama.cpp: perplexities within 1 %.

Runs where LLAMA_CPP names a libllama.so (`make compare-llama-cpp`). Weights are random, so the
perplexities mean nothing by themselves.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from galley.kernels.cpu import CpuBackend
from galley.loader.gguf_checkpoint import GGUFCheckpoint
from tests.models import test_gguf_dense, test_gguf_experts, test_gguf_gpt, test_gguf_states
from tests.models.checkpoints import make
from tests.models.driver import LIMITS, load, solo_logits
from tests.models.llama_cpp import LlamaCpp

pytestmark = pytest.mark.skipif("LLAMA_CPP" not in os.environ, reason="LLAMA_CPP is not set")

VOCAB = 131
IDS = np.random.default_rng(5).integers(3, VOCAB, 200)

Write = Callable[[Path], None]


def _writers() -> dict[str, Write]:
    """One of each file that the tests of GGUF write."""
    writers: dict[str, Write] = {}
    dense, gpt, states = test_gguf_dense, test_gguf_gpt, test_gguf_states
    for name in dense.FILES:
        writers[name] = lambda path, n=name: dense.write(path, n, make(dense.FILES[n][0]))
    for name in test_gguf_experts.FILES:
        writers[name] = lambda path, n=name: test_gguf_experts.write(
            path, n, make(test_gguf_experts.case_of(n))
        )
    for name in gpt.FILES:
        writers[name] = lambda path, n=name: gpt.write(path, gpt.FILES[n], gpt.made(n))
    for name in states.FILES:
        writers[name] = lambda path, n=name: states.write(path, n, make(states.FILES[n][0]))
    return writers


WRITERS = _writers()
#: Files that it does not load, since these tiny models have what its code does not.
NOT_LOADED = {
    "arcee": "biases",
    "cohere": "norms of each head by itself",
    "deepseek-v2": "queries without a latent, but in the Lite model",
    "falcon-mamba": "inner sizes other than twice the hidden one",
    "gemma3n": "layers without keys of their own",
    "gpt-neox-sequential": "attention without biases",
    "internlm2": "biases",
    "lfm2": "biases of convolutions",
    "mamba": "inner sizes other than twice the hidden one",
    "nemotron-h": "biases of the Mamba-2 block",
    "nemotron-h-moe": "biases of the Mamba-2 block",
    "olmoe": "grouped heads",
}
#: Where llama.cpp computes something else, by its code.
OTHERWISE = {
    "exaone4": "windows in the model of 64 layers alone",
    "mixtral": "no windows",
    "phi3": "no windows",
    "phimoe": "a softmax over all experts",
}


@pytest.fixture(scope="module")
def llama_cpp() -> LlamaCpp:
    return LlamaCpp(Path(os.environ["LLAMA_CPP"]))


@pytest.fixture(autouse=True)
def files_say_their_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp wants a tokenizer, or to be told that there is none."""
    header = gguf.GGUFWriter.write_header_to_file

    def with_vocabulary(writer: Any, *args: Any, **kwargs: Any) -> None:
        writer.add_tokenizer_model("none")
        writer.add_vocab_size(VOCAB)
        header(writer, *args, **kwargs)

    monkeypatch.setattr(gguf.GGUFWriter, "write_header_to_file", with_vocabulary)


def perplexity(logits: NDArray[np.float32]) -> float:
    """Of IDS, from the second token on."""
    x = logits[:-1].astype(np.float64)
    x -= x.max(-1, keepdims=True)
    logprobs = x - np.log(np.exp(x).sum(-1, keepdims=True))
    return float(np.exp(-logprobs[np.arange(len(x)), IDS[1:]].mean()))


@pytest.mark.parametrize("name", WRITERS)
def test_perplexity_is_that_of_llama_cpp(name: str, llama_cpp: LlamaCpp, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / "m.gguf")
    if name in NOT_LOADED:
        with pytest.raises(ValueError, match="cannot load"):
            llama_cpp.logits(tmp_path / "m.gguf", IDS, VOCAB)
        pytest.skip(f"llama.cpp does not load {NOT_LOADED[name]}")
    theirs = perplexity(llama_cpp.logits(tmp_path / "m.gguf", IDS, VOCAB))
    backend = CpuBackend("f32", threads=1)
    executable = backend.build(load(GGUFCheckpoint(tmp_path / "m.gguf"), backend), LIMITS)
    ours = perplexity(solo_logits(executable, IDS, [150, 1, 49]))
    print(f"{name}: {ours:.4f} here, {theirs:.4f} in llama.cpp")
    # A row of `OTHERWISE` that agrees is one too many.
    assert (abs(ours / theirs - 1) < 0.01) != (name in OTHERWISE)
