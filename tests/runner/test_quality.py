"""Accuracy of the kernels on a real model and text, against transformers in float32.

Every model here has the default model's weights, dequantised: rounded to bfloat16, or requantised
to each GGUF type. `make quality` measures perplexity of more types and on more text than the gate.
"""

from __future__ import annotations

import os
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from galley.executor.local import LocalExecutor
from galley.loader import RawTensor
from galley.request import SamplingParams
from galley.runner.runner import Runner
from galley.text import load_tokenizer
from tests.executor.toy import Toy
from tests.models.checkpoints import Case, StateDict, make
from tests.quant.blocks import random_blocks
from tests.runner.models import (
    TEXT,
    ArrayCheckpoint,
    default_checkpoint,
    dequantised,
    in_format,
    open_runner,
    rounded,
    torch_model,
)
from tests.small_model import small_model

WINDOW = 512
NUM_WINDOWS = int(os.environ.get("QUALITY_WINDOWS", "0"))
LEGACY = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]


@pytest.fixture(scope="module", autouse=True)
def one_torch_thread():
    """torch's threads spin while they wait, which starves two suites that run at once."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model_info():
    return default_checkpoint().model_info


@pytest.fixture(scope="module")
def arrays():
    return dequantised(default_checkpoint())


@pytest.fixture(scope="module")
def token_ids(model_info):
    return load_tokenizer(Path(model_info.source)).encode(TEXT.read_text(encoding="utf-8"))


def pieces(token_ids: list[int], count: int, length: int) -> np.ndarray:
    """[count, length] token ids, evenly spaced over the text."""
    starts = np.linspace(0, len(token_ids) - length - 1, count).astype(int)
    return np.array([token_ids[s : s + length] for s in starts])


def teacher_forced(runner: Runner, ids: np.ndarray) -> np.ndarray:
    """[count, length, V] logits at every position of each row of `ids`, alone."""
    toy = Toy(LocalExecutor(runner), 1, runner.max_model_len)
    out = []
    for row in ids:
        s = toy.add(0, row.tolist())
        runner.execute(toy.plan([(s, len(row))], all_logits=True))
        out.append(runner._executable.logits.copy())
        runner.sample()
        toy.free(s)
    return np.stack(out)


def torch_logits(model: torch.nn.Module, ids: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.from_numpy(ids)).logits.float().numpy()


def mean_kl(want: np.ndarray, got: np.ndarray) -> float:
    """Mean of KL(want | got) over distributions given by logits [..., V], in nats."""
    p, q = (torch.from_numpy(x).double().log_softmax(-1) for x in (want, got))
    return float((p.exp() * (p - q)).sum(-1).mean())


def top1(want: np.ndarray, got: np.ndarray) -> float:
    return float((want.argmax(-1) == got.argmax(-1)).mean())


@pytest.mark.parametrize("weights", ["quantised", "bfloat16"])
def test_default_model_against_float32(model_info, arrays, token_ids, weights):
    """The error against float32 on the same weights is at most that of torch in bfloat16."""
    ids = pieces(token_ids, 4, 64)
    quantised = weights == "quantised"
    model = torch_model(model_info, arrays if quantised else rounded(arrays))
    want = torch_logits(model, ids)
    checkpoint = default_checkpoint() if quantised else in_format(model_info, arrays, "bfloat16")
    got = teacher_forced(open_runner(checkpoint, max_model_len=128), ids)
    torch_bf16 = torch_logits(model.to(torch.bfloat16), ids)
    print(
        f"KL ours {mean_kl(want, got):.2e}, torch bf16 {mean_kl(want, torch_bf16):.2e}; "
        f"top-1 ours {top1(want, got):.4f}, torch bf16 {top1(want, torch_bf16):.4f}"
    )
    assert mean_kl(want, got) <= 1e-3
    assert top1(want, got) >= top1(want, torch_bf16)


def test_int8_activations(model_info, arrays, token_ids):
    """Less accurate than 16 bits, within a bound."""
    ids = pieces(token_ids, 5, 64)
    want = torch_logits(torch_model(model_info, arrays), ids)
    flags = {"max_model_len": 128, "quantized_activations": "int8"}
    got = teacher_forced(open_runner(default_checkpoint(), **flags), ids)
    assert 1e-3 < mean_kl(want, got) <= 1e-2
    assert top1(want, got) >= 0.9


def test_float32_kernels_are_float32(model_info, arrays, token_ids):
    ids = pieces(token_ids, 2, 64)
    want = torch_logits(torch_model(model_info, rounded(arrays)), ids)
    runner = open_runner(
        in_format(model_info, rounded(arrays), "float32"), max_model_len=128, dtype="float32"
    )
    got = teacher_forced(runner, ids)
    assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()


def test_the_reference_backend_generates_the_tokens_of_transformers(token_ids):
    """Two layers of the default model; tests/models has its logits for every family."""
    ids = pieces(token_ids, 4, 24)
    checkpoint = default_checkpoint(small_model())
    model = torch_model(checkpoint.model_info, dequantised(checkpoint))
    with torch.inference_mode():
        want = model.generate(
            torch.from_numpy(ids),
            attention_mask=torch.ones(ids.shape, dtype=torch.int64),
            max_new_tokens=12,
            min_new_tokens=12,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )[:, ids.shape[1] :]
    runner = open_runner(
        checkpoint,
        max_model_len=64,
        max_num_seqs=8,
        backend="reference",
        kv_cache_dtype="float32",
    )
    logits = torch_logits(model, ids[:2])
    assert np.abs(teacher_forced(runner, ids[:2]) - logits).max() <= 1e-4 * np.abs(logits).max()
    runner.reset()
    toy = Toy(LocalExecutor(runner), 8, 64)
    sequences = [toy.add(i, row.tolist()) for i, row in enumerate(ids)]
    toy.generate(sequences, 12, budget=300)
    assert [s.output for s in sequences] == want.tolist()


def native_perplexity(checkpoint, windows: np.ndarray, **flags: object) -> float:
    """Through the executor, by prompt logprobs."""
    length = windows.shape[1]
    runner = open_runner(checkpoint, max_model_len=length + 1, **flags)
    toy = Toy(LocalExecutor(runner), 1, length + 1)
    params = SamplingParams(temperature=0.0, prompt_logprobs=0)
    total, count = 0.0, 0
    for window in windows:
        s = toy.add(0, window.tolist(), params)
        for _ in range(2):
            logprobs = toy.run([(s, length // 2)]).prompt_logprobs.logprobs
            total += float(logprobs.astype(np.float64).sum())
            count += len(logprobs)
        toy.free(s)
    assert count == windows.size - len(windows)
    return float(np.exp(-total / count))


def torch_perplexity(model: torch.nn.Module, windows: np.ndarray) -> float:
    losses = []
    with torch.inference_mode():
        for window in torch.from_numpy(windows):
            logits = model(window[None]).logits[0, :-1]
            losses.append(float(torch.nn.functional.cross_entropy(logits, window[1:])))
    return float(np.exp(np.mean(losses)))


@pytest.mark.timeout(600)  # float32 in torch on one thread
@pytest.mark.parametrize("name", LEGACY if NUM_WINDOWS else LEGACY[:1])
def test_perplexity_of_quantised_weights(model_info, arrays, token_ids, name):
    count, length = (NUM_WINDOWS, WINDOW) if NUM_WINDOWS else (1, WINDOW // 2)
    windows = np.array(token_ids[: count * length]).reshape(count, length)
    checkpoint = in_format(model_info, arrays, name)
    got = native_perplexity(checkpoint, windows)
    want = torch_perplexity(torch_model(model_info, dequantised(checkpoint)), windows)
    print(f"{name}: perplexity {got:.3f}, float32 {want:.3f}, ratio {got / want:.4f}")
    assert got <= 1.01 * want


SIZES = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
}


#: Type → spread of its blocks' scales, for weights of about 0.1.
SCALES = {"Q5_1": 1e-2, "Q8_0": 1.5e-3, "Q4_K": 2e-4, "Q5_K": 2e-4, "Q6_K": 3e-5}


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize(("backend", "tolerance"), [("reference", 1e-4), ("cpu", 1e-3)])
def test_types_on_a_tiny_model(name, backend, tolerance):
    model = make(Case("Llama", SIZES))
    rng = np.random.default_rng(0)
    tensors = {}
    for key, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        if parameter.ndim == 1:
            data = parameter.detach().numpy()
            tensors[key] = RawTensor(key, shape, "float32", data)
            continue
        data = random_blocks(name, rng, *shape, scale=SCALES[name])
        tensors[key] = RawTensor(key, shape, name, data)
        values = gguf.dequantize(data, gguf.GGMLQuantizationType[name])
        parameter.data = torch.from_numpy(values.reshape(shape))
    checkpoint = ArrayCheckpoint(StateDict(model).model_info, tensors)
    ids = rng.integers(0, 131, (3, 40))
    want = torch_logits(model, ids)
    runner = open_runner(checkpoint, max_model_len=64, backend=backend, dtype="float32")
    error = np.abs(teacher_forced(runner, ids) - want).max() / np.abs(want).max()
    print(f"{name} {backend}: error {error:.1e} of the largest logit")
    assert error <= tolerance
