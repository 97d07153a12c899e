"""Beam search against every sequence of a small world, written out."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from galley.errors import InvalidRequest
from galley.frontend.beam_search import BeamSearch, BeamSearchParams, Candidates
from galley.outputs import Logprob

EOS = 4
PROMPT = [0, 1]


def world(seed: int) -> np.ndarray:
    """Log-probabilities of five tokens after each token."""
    odds = np.random.default_rng(seed).normal(size=(5, 5)) * 2
    return odds - np.log(np.exp(odds).sum(1, keepdims=True))


def run(table: np.ndarray, params: BeamSearchParams, seen: int = 5) -> BeamSearch:
    """Drive a search; each step returns the `seen` most likely tokens."""
    search = BeamSearch(PROMPT, params, [EOS])
    while not search.done:
        found: list[Candidates] = []
        for prompt in search.prompts:
            row = table[prompt[-1]]
            best = np.argsort(-row)[:seen]
            found.append({int(t): Logprob(float(row[t])) for t in best})
        search.advance(found)
    return search


def score(table: np.ndarray, tokens: tuple[int, ...], penalty: float) -> float:
    total, last = 0.0, PROMPT[-1]
    for token in tokens:
        total += float(table[last, token])
        last = token
    return total / (len(PROMPT) + len(tokens) - (EOS in tokens)) ** penalty


def everything(length: int) -> list[tuple[int, ...]]:
    """All sequences that end with EOS, or reach `length` without it."""
    found = []
    for n in range(1, length + 1):
        for tokens in itertools.product(range(5), repeat=n):
            if EOS not in tokens[:-1] and (tokens[-1] == EOS or n == length):
                found.append(tokens)
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_wide_enough_it_finds_the_best_of_all(seed: int, penalty: float) -> None:
    table = world(seed)
    params = BeamSearchParams(
        beam_width=256, max_tokens=4, length_penalty=penalty, include_stop_str_in_output=True
    )
    best = run(table, params).best()
    # Sequences that make the same transitions in another order tie.
    expected = sorted((score(table, s, penalty) for s in everything(4)), reverse=True)
    assert [b.score(penalty) for b in best] == pytest.approx(expected[: len(best)])
    assert len({b.token_ids for b in best}) == len(best) > 100
    for beam in best:
        assert beam.score(penalty) == pytest.approx(score(table, beam.token_ids, penalty))
        assert (beam.stop_id == EOS) == (EOS in beam.token_ids)


def test_width_one_is_greedy() -> None:
    table = world(9)
    table[:, EOS] = -math.inf
    [beam] = run(table, BeamSearchParams(beam_width=1, max_tokens=6), seen=2).best()
    last, greedy = PROMPT[-1], []
    for _ in range(6):
        last = int(table[last].argmax())
        greedy.append(last)
    assert list(beam.token_ids) == greedy
    assert beam.stop_id is None
    assert [next(iter(c)) for c in beam.candidates] == greedy


def test_the_end_token_is_hidden_or_ignored() -> None:
    table = world(3)
    table[:, EOS] += 50
    [hidden] = run(table, BeamSearchParams(beam_width=1, max_tokens=4)).best()
    assert hidden.token_ids == ()
    assert hidden.stop_id == EOS
    [ignored] = run(table, BeamSearchParams(beam_width=1, max_tokens=4, ignore_eos=True)).best()
    assert ignored.token_ids == (EOS,) * 4
    assert ignored.stop_id is None


@pytest.mark.parametrize("field", ["beam_width", "max_tokens"])
def test_limits(field: str) -> None:
    with pytest.raises(InvalidRequest, match=field):
        BeamSearchParams(**{"beam_width": 2, "max_tokens": 2, field: 0})
