"""The same GGUF file in llama.cpp: perplexities within 1 %, and where the most likely tokens part,
both lie within 0.1 nat of each other.

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
import torch
from numpy.typing import NDArray

from galley.kernels.cpu import CpuBackend
from galley.layers.layer_norm import LayerNormSpec
from galley.layers.norm import RMSNormSpec
from galley.layers.weights import WeightSource
from galley.loader.gguf_checkpoint import GGUFCheckpoint
from galley.models import phimoe
from galley.models.mixture import read_routing
from tests.models import test_gguf_dense, test_gguf_experts, test_gguf_gpt, test_gguf_states
from tests.models.checkpoints import make
from tests.models.driver import LIMITS, load, solo_logits
from tests.models.llama_cpp import logits_of

pytestmark = pytest.mark.skipif("LLAMA_CPP" not in os.environ, reason="LLAMA_CPP is not set")

VOCAB = 131
IDS = np.random.default_rng(5).integers(3, VOCAB, 200)

Write = Callable[[Path], None]


def without_norm_biases(model: torch.nn.Module) -> torch.nn.Module:
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            torch.nn.init.zeros_(module.bias)
    return model


def _writers() -> dict[str, Write]:
    """One of each file that the tests of GGUF write."""
    writers: dict[str, Write] = {}
    dense, gpt, states = test_gguf_dense, test_gguf_gpt, test_gguf_states
    for name in dense.FILES:
        writers[name] = lambda path, n=name: dense.write(path, n, make(dense.FILES[n][0]))
    for name in test_gguf_experts.FILES:
        writers[name] = lambda path, n=name: test_gguf_experts.write(
            path, n, without_norm_biases(make(test_gguf_experts.case_of(n)))
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
    "bailing-moe-v2": "heads that together are wider than the hidden size",
    "cohere": "norms of each head by itself",
    "decilm": "layers without a block (an assertion fails)",
    "deepseek-v2": "queries without a latent, but in the Lite model",
    "deepseek-v3.2": "files without an indexer",
    "falcon-mamba": "inner sizes other than twice the hidden one",
    "gemma3n": "layers without keys of their own",
    "glm-moe-dsa": "files without an indexer",
    "gpt-neox-sequential": "attention without biases",
    "internlm2": "biases",
    "lfm2": "biases of convolutions",
    "mamba": "inner sizes other than twice the hidden one",
    "nemotron-h": "biases of the Mamba-2 block",
    "nemotron-h-moe": "biases of the Mamba-2 block",
    "olmoe": "grouped heads",
}


class RmsNormSpec(LayerNormSpec, frozen=True):
    """The norm that llama.cpp has in Phi-3.5-MoE, where the bias is 0."""

    def build(self, source: WeightSource) -> Any:
        super().build(source)
        return RMSNormSpec(self.name, self.size, self.eps).build(source)


def without_windows(config: dict[str, Any], _: pytest.MonkeyPatch) -> None:
    config["sliding_window"] = None


def truncated(config: dict[str, Any], _: pytest.MonkeyPatch) -> None:
    config["rope_scaling"]["truncate"] = True


def rms_norms_and_softmax_of_all(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    without_windows(config, monkeypatch)
    monkeypatch.setattr(phimoe, "LayerNormSpec", RmsNormSpec)
    monkeypatch.setattr(phimoe, "read_routing", lambda config, **_: read_routing(config))


#: Where llama.cpp computes something else, by its code; and what makes Galley compute that, too.
OTHERWISE = {
    "exaone4": without_windows,  # but in the model of 64 layers
    "gpt-oss": truncated,  # the ramp of YaRN begins and ends at whole dimensions
    "mixtral": without_windows,
    "phi3": without_windows,
    "phimoe": rms_norms_and_softmax_of_all,
    "starcoder2": without_windows,
}
#: Where the choice between two experts is a tie within the rounding of llama.cpp's cache (f16): so
#: many tokens may part further.
TIES = {"mixtral": 2, "qwen3-next": 1}


@pytest.fixture(autouse=True)
def files_say_their_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp wants a tokenizer, or to be told that there is none."""
    header = gguf.GGUFWriter.write_header_to_file

    def with_vocabulary(writer: Any, *args: Any, **kwargs: Any) -> None:
        writer.add_tokenizer_model("none")
        writer.add_vocab_size(VOCAB)
        header(writer, *args, **kwargs)

    monkeypatch.setattr(gguf.GGUFWriter, "write_header_to_file", with_vocabulary)


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    x = logits.astype(np.float64)
    x -= x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def perplexity(logprobs: NDArray[np.float64]) -> float:
    """Of IDS, from the second token on."""
    return float(np.exp(-logprobs[np.arange(len(IDS) - 1), IDS[1:]].mean()))


def parts(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Nats between the likeliest token of the one and that of the other, by either, in each row."""
    rows, mine, other = np.arange(len(IDS)), ours.argmax(-1), theirs.argmax(-1)
    return np.maximum(
        ours[rows, mine] - ours[rows, other], theirs[rows, other] - theirs[rows, mine]
    )


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_means_the_same_in_llama_cpp(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Path(os.environ["LLAMA_CPP"])
    WRITERS[name](tmp_path / "m.gguf")
    if name in NOT_LOADED:
        with pytest.raises(ValueError, match="cannot load"):
            logits_of(library, tmp_path / "m.gguf", IDS, VOCAB)
        pytest.skip(f"llama.cpp does not load {NOT_LOADED[name]}")
    theirs = log_softmax(logits_of(library, tmp_path / "m.gguf", IDS, VOCAB))

    def agrees(note: str = "", change: Any = None) -> bool:
        backend = CpuBackend("f32", threads=1)
        checkpoint = GGUFCheckpoint(tmp_path / "m.gguf")
        if change:
            change(checkpoint.model_info.hf_config, monkeypatch)
        executable = backend.build(load(checkpoint, backend), LIMITS)
        ours = log_softmax(solo_logits(executable, IDS, [150, 1, 49]))
        here, there, apart = perplexity(ours), perplexity(theirs), parts(ours, theirs)
        print(
            f"{name}{note}: {here:.4f} here, {there:.4f} in llama.cpp; "
            f"the likeliest tokens at most {apart.max():.4f} nat apart"
        )
        return abs(here / there - 1) < 0.01 and (apart > 0.1).sum() <= TIES.get(name, 0)

    if name in OTHERWISE:
        assert not agrees()  # a row that agrees is one too many
        assert agrees(", as llama.cpp computes it", OTHERWISE[name])
    else:
        assert agrees()
