"""--logprobs-mode: raw or processed, logprobs or logits; and the same whatever the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from galley.executor.local import LocalExecutor
from galley.request import SamplingParams
from galley.runner.scores import highest
from tests.executor.toy import Toy
from tests.models.checkpoints import CASES, SIZES, StateDict, make
from tests.runner.models import open_runner

VOCAB = SIZES["vocab_size"]
PROMPT = [5, 17, 99, 3, 64, 17, 8, 120, 42, 5, 11]
MODES = ("raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits")
SAMPLING = {
    "greedy": {"temperature": 0.0},
    "greedy-penalties": {
        "temperature": 0.0,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.2,
        "repetition_penalty": 1.3,
    },
    "temperature": {"temperature": 0.7, "seed": 1},
    "top-k": {"temperature": 1.5, "top_k": 5, "seed": 2},
    "top-p": {"temperature": 1.5, "top_p": 0.6, "seed": 3},
    "min-p": {"temperature": 2.0, "min_p": 0.3, "seed": 4},
    "bias-and-mask": {
        "temperature": 1.0,
        "logit_bias": {9: 4.0},
        "allowed_token_ids": [3, 9, 40, 41],
        "seed": 5,
    },
    "cold": {"temperature": 0.01, "seed": 6},
}


@pytest.fixture(scope="module")
def checkpoint():
    return StateDict(make(CASES["llama-mha"]))


def toy_in(checkpoint, mode: str) -> Toy:
    runner = open_runner(checkpoint, max_model_len=64, logprobs_mode=mode)
    return Toy(LocalExecutor(runner), 8, 64)


def processed(logits: np.ndarray, tokens: list[int], params: SamplingParams) -> torch.Tensor:
    """vLLM's steps on one row: mask, bias, penalties, temperature, min_p, top_k, top_p."""
    x = torch.from_numpy(logits.copy())
    if params.allowed_token_ids:
        keep = torch.zeros(len(x), dtype=torch.bool)
        keep[params.allowed_token_ids] = True
        x[~keep] = -torch.inf
    for token, bias in (params.logit_bias or {}).items():
        x[token] += bias
    counts = torch.bincount(torch.tensor(tokens[len(PROMPT) :], dtype=torch.long), minlength=len(x))
    seen = torch.bincount(torch.tensor(tokens), minlength=len(x)) > 0
    penalty = torch.where(seen, params.repetition_penalty, 1.0)
    x = torch.where(x > 0, x / penalty, x * penalty)
    x = x - params.frequency_penalty * counts - params.presence_penalty * (counts > 0)
    if params.temperature == 0.0:
        return x
    x = x / params.temperature
    probabilities = x.softmax(-1)
    x[probabilities < params.min_p * probabilities.max()] = -torch.inf
    if params.top_k:
        x[x < x.topk(params.top_k).values[-1]] = -torch.inf
    if params.top_p < 1:
        ordered, ids = x.sort(descending=True)
        mass = ordered.softmax(-1)
        x[ids[mass.cumsum(-1) - mass >= params.top_p]] = -torch.inf
    return x


def wanted(mode: str, logits: np.ndarray, tokens: list[int], params: SamplingParams) -> np.ndarray:
    x = torch.from_numpy(logits.copy())
    if mode.startswith("processed"):
        x = processed(logits, tokens, params)
    return (x.log_softmax(-1) if mode.endswith("logprobs") else x).numpy()


@pytest.mark.parametrize("name", SAMPLING)
@pytest.mark.parametrize("mode", MODES)
def test_scores_are_those_of_the_mode(checkpoint, mode, name):
    toy = toy_in(checkpoint, mode)
    params = SamplingParams(**SAMPLING[name], logprobs=4, max_tokens=None)
    s = toy.add(1, PROMPT, params)
    for _ in range(4):
        before = list(s.tokens)
        scores = toy.run([(s, len(s.tokens) - s.computed)]).logprobs
        want = wanted(mode, toy.executor._runner._executable.logits[0], before, params)
        ids = scores.token_ids
        assert ids[0] == s.tokens[-1]
        assert np.allclose(scores.logprobs, want[ids], rtol=1e-5, atol=1e-5)
        assert scores.ranks[0] == 1 + (want > want[ids[0]]).sum()
        assert np.allclose(scores.logprobs[1:], np.sort(want)[::-1][:4], rtol=1e-5, atol=1e-5)
        assert np.isfinite(scores.logprobs[0])


@pytest.mark.parametrize("count", [0, 1, 3, 5, 9, 10, 11])
def test_the_highest_of_equal_ones_are_those_of_smaller_ids(count):
    least = -np.inf
    scores = np.array([1, 4, least, 4, 2, least, 9, 1, 1, least], np.float32)
    assert highest(scores, count).tolist() == [6, 1, 3, 4, 0, 7, 8, 2, 5, 9][:count]


@pytest.mark.parametrize("mode", MODES[1:])
def test_tokens_requested_by_id_and_the_whole_vocabulary(checkpoint, mode):
    toy = toy_in(checkpoint, mode)
    args = SAMPLING["top-k"]
    by_id = toy.add(0, PROMPT, SamplingParams(**args, logprob_token_ids=[7, 3]))
    every = toy.add(1, PROMPT, SamplingParams(**args, logprobs=-1))
    scores = toy.run([(by_id, len(PROMPT)), (every, len(PROMPT))]).logprobs
    logits = toy.executor._runner._executable.logits
    want = wanted(mode, logits[0], PROMPT, SamplingParams(**args))
    spans = {
        r: slice(scores.indptr[i], scores.indptr[i + 1]) for i, r in enumerate(scores.rows.tolist())
    }
    assert scores.token_ids[spans[0]].tolist() == [by_id.tokens[-1], 7, 3]
    assert len(scores.token_ids[spans[1]]) == VOCAB + 1
    for span in spans.values():
        ids = scores.token_ids[span]
        assert np.allclose(scores.logprobs[span], want[ids], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", MODES[1:])
def test_a_prompt_s_scores_are_raw(checkpoint, mode):
    toy = toy_in(checkpoint, mode)
    s = toy.add(0, PROMPT, SamplingParams(temperature=2.0, top_k=2, seed=1, prompt_logprobs=2))
    scores = toy.run([(s, len(PROMPT))]).prompt_logprobs
    logits = toy.executor._runner._executable.logits
    for i, token in enumerate(PROMPT[1:]):
        want = torch.from_numpy(logits[i].copy())
        want = want.log_softmax(-1) if mode.endswith("logprobs") else want
        span = slice(scores.indptr[i], scores.indptr[i + 1])
        assert scores.token_ids[span][0] == token
        assert np.allclose(scores.logprobs[span], want.numpy()[scores.token_ids[span]], atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_scores_do_not_depend_on_the_batch(checkpoint, mode):
    """Bit for bit, for a request alone and beside seven others in another slot."""

    def scores(slot, others):
        toy = toy_in(checkpoint, mode)
        params = SamplingParams(**SAMPLING["top-p"], logprobs=5, logit_bias={4: 1.0})
        beside = [
            toy.add(i, PROMPT[i % 5 :], SamplingParams(**args, logprobs=2, max_tokens=None))
            for i, args in enumerate(SAMPLING.values())
            if i != slot and others
        ]
        s = toy.add(slot, PROMPT, params)
        results = toy.generate([*beside, s], 6)
        found = []
        for result in results:
            row = result.logprobs.rows.max()  # it comes last
            entry = result.logprobs.select(result.logprobs.rows == row)
            found.append((entry.token_ids.tobytes(), entry.logprobs.tobytes()))
        return s.output, found

    assert scores(0, others=False) == scores(7, others=True)
