"""What the peers' run and the claims make of their figures."""

import pytest

from benchmarks.claims.claim import compare
from benchmarks.claims.run import table as claims_table
from benchmarks.peers.perplexity import WINDOW, from_logprobs, second_half
from benchmarks.peers.run import groups, interleave
from benchmarks.peers.table import ROWS, Row, table
from benchmarks.peers.workloads import WORKLOADS, figures
from galley.cli.bench.backends import Outcome
from galley.cli.bench.datasets import Sample
from galley.cli.bench.datasets.text import Corpus, read_text
from galley.cli.bench.endpoint import find_tokenizer
from galley.cli.bench.traffic import Run


def test_workloads_have_exact_and_unlike_prompts():
    corpus = Corpus(read_text(), find_tokenizer(None, None)[1])
    load = WORKLOADS["W2"]
    samples = load.samples(corpus, 0)
    assert len(samples) == 64
    assert all(corpus.count(s.prompt) == 320 and s.output_len == 96 for s in samples)
    assert len({s.prompt for s in samples}) == 64
    assert samples == load.samples(corpus, 0)
    others = [*load.samples(corpus, 1), *load.warm_up(corpus)]
    assert not {s.prompt for s in samples} & {s.prompt for s in others}


def test_an_answer_of_another_length_is_a_failure():
    def outcome(tokens):
        return Outcome(0.0, True, ttft=0.1, latency=0.2, output_tokens=tokens, prompt_tokens=3)

    run = Run([outcome(4), outcome(3)], 0.0, 2.0, 0.0)
    found = figures(run, [Sample("x", 3, 4)] * 2)
    assert found["failures"] == 1
    assert found["out_tok_s"] == 2.0


def test_engines_that_are_compared_run_together_and_in_turn():
    two = groups({name: ROWS[name] for name in ("S1", "S3", "S5")})
    assert two == [
        [("galley-q4_0", "W1"), ("llama-q4_0", "W1")],
        [
            ("galley-bf16", "W4"),
            ("vllm-bf16", "W4"),
            ("llama-bf16", "W4"),
            ("galley-bf16", "W2"),
            ("vllm-bf16", "W2"),
        ],
    ]
    order = [(turn[0], run) for turn, run in interleave(two[0], 2)]
    assert order == [("galley-q4_0", 0), ("llama-q4_0", 0), ("galley-q4_0", 1), ("llama-q4_0", 1)]


def test_ratios_are_taken_run_by_run():
    rows = {"S": Row("W1", "a", ("b",), 2.0)}
    common = {"failures": 0, "ttft_p50_ms": 10.0}
    records = {
        ("a", "W1"): [{"out_tok_s": 10.0, **common}, {"out_tok_s": 30.0, **common}],
        ("b", "W1"): [{"out_tok_s": 5.0, **common}, {"out_tok_s": 10.0, **common}],
    }
    last = table(rows, records).splitlines()[-1]
    assert "| 2.50 (2.00 to 3.00) | 1.00 (1.00 to 1.00) | 2.0 × |" in last


def test_perplexity_scores_the_second_half():
    ids = list(range(WINDOW))
    entries = [None] + [{str(i): {"logprob": -1.0 if i > WINDOW // 2 else -9.0}} for i in ids[1:]]
    scored = second_half(ids, entries)
    assert len(scored) == WINDOW // 2 - 1
    assert from_logprobs(scored) == pytest.approx(2.718281828)


def test_claims_compare_in_turn():
    calls = []

    def side(name, values):
        def run():
            calls.append(name)
            return values.pop(0)

        return name, run

    row = compare("1", "claim", side("x", [4.0, 6.0]), side("y", [2.0, 2.0]), 2, "ms", False)
    assert calls == ["x", "y", "x", "y"]
    assert row.ratio == pytest.approx((0.5 + 1 / 3) / 2)
    assert row.spread == (pytest.approx(1 / 3), 0.5)
    assert claims_table([row]).splitlines()[-1] == (
        "| 1 | claim | x: 5 ms | y: 2 ms | 0.42 (0.33 to 0.50) |"
    )
