"""Evaluation of the figures of the peer comparison and of the claims."""

import os

import pytest

from benchmarks.claims.claim import compare
from benchmarks.claims.run import table as claims_table
from benchmarks.layers import DENSE, FAMILIES, row, write_config
from benchmarks.peers.perplexity import WINDOW, from_logprobs, second_half
from benchmarks.peers.run import groups, interleave
from benchmarks.peers.steps import GoalResult, part_table, parts_of_steps, share_table
from benchmarks.peers.table import ROWS, Row, front_end_table, table
from benchmarks.peers.threads import role
from benchmarks.peers.workloads import WORKLOADS, figures
from galley.cli.bench.backends import Outcome
from galley.cli.bench.datasets import Sample
from galley.cli.bench.datasets.text import Corpus, read_text
from galley.cli.bench.endpoint import find_tokenizer
from galley.cli.bench.traffic import Run
from galley.config.resolve import from_kwargs
from galley.loader import read_model_info, resolve_source
from galley.models.footprint import measure
from galley.planning.steps import Shape


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


def test_wrong_answer_length_is_a_failure():
    def outcome(tokens):
        return Outcome(0.0, True, ttft=0.1, latency=0.2, output_tokens=tokens, prompt_tokens=3)

    run = Run([outcome(4), outcome(3)], 0.0, 2.0, 0.0)
    found = figures(run, [Sample("x", 3, 4)] * 2)
    assert found["failures"] == 1
    assert found["out_tok_s"] == 2.0


def test_compared_engines_run_together_and_alternate():
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


def test_ratios_are_computed_per_run():
    rows = {"S": Row("W1", "a", ("b",), 2.0)}
    common = {"failures": 0, "ttft_p50_ms": 10.0}
    records = {
        ("a", "W1"): [{"out_tok_s": 10.0, **common}, {"out_tok_s": 30.0, **common}],
        ("b", "W1"): [{"out_tok_s": 5.0, **common}, {"out_tok_s": 10.0, **common}],
    }
    last = table(rows, records).splitlines()[-1]
    assert "| 2.50 (2.00 to 3.00) | 1.00 (1.00 to 1.00) | 2.0 × |" in last


def test_front_ends_are_compared_by_cpu_time_a_token():
    rows = {"S9": Row("W4", "a", ("b",), 1 / 3)}
    records = {
        ("a", "W4"): [{"front_cpu_us_per_token": 30.0}, {"front_cpu_us_per_token": 20.0}],
        ("b", "W4"): [{"front_cpu_us_per_token": 100.0}, {"front_cpu_us_per_token": float("nan")}],
    }
    first, last = front_end_table(rows, records).splitlines()[-2:]
    assert first == "| S9 | W4 | a | 25 |  |  |"
    assert "| 0.30 (0.30 to 0.30) | 0.33 × |" in last


def _step(number, begin, rows, tokens, parts):
    """A step of the trace: consecutive parts in µs."""
    whole = {"ph": "X", "name": f"step {number}", "ts": begin, "dur": sum(parts.values())}
    yield {**whole, "args": {"num_rows": rows, "num_tokens": tokens}}
    for name, dur in parts.items():
        yield {"ph": "X", "name": name, "ts": begin, "dur": dur}


def test_parts_of_a_step_are_those_of_decode_steps_in_a_row():
    parts = {"schedule": 10.0, "execute": 80.0, "commit": 5.0}
    slow = {"schedule": 99.0, "execute": 999.0, "commit": 99.0}
    events = [{"ph": "M", "name": "process_name"}]
    for number, (begin, rows, tokens, of) in enumerate(
        [(0, 2, 300, slow), (2000, 2, 2, parts), (2100, 2, 2, parts), (2200, 1, 1, slow)]
    ):
        events += _step(number, float(begin), rows, tokens, of)
    found = parts_of_steps(events, 2)
    assert found == {
        "step, from one to the next": 100.0,
        "· schedule": 10.0,
        "· native call, runner around it": 80.0,
        "· commit, outputs": 5.0,
        "· send, receive, flight recorder": 5.0,
    }
    assert parts_of_steps(events, 3) == {}
    goal = GoalResult(
        ROWS["S1"],
        limit=[20.0, 20.0],
        native=[10.0, 20.0],
        core=[9.0, 9.0],
        http=[9.0, 16.0],
        foreign=[0.0, 0.1],
        parts=[found, {}],
    )
    row = share_table({"S1": goal}).splitlines()[-1]
    assert row.endswith("| 20 | 15 (75%) | 9 | 12 | 85% (80% to 90%) | 85% | 0.05 |")
    assert "| · schedule | 10 |" in part_table({"S1": goal})


def test_thread_roles_follow_process_titles():
    me = os.getpid()
    assert role(me, me) == "front end: main"
    assert role(me, me + 1) == "front end: other threads"


def test_perplexity_scores_the_second_half():
    ids = list(range(WINDOW))
    entries = [None] + [{str(i): {"logprob": -1.0 if i > WINDOW // 2 else -9.0}} for i in ids[1:]]
    scored = second_half(ids, entries)
    assert len(scored) == WINDOW // 2 - 1
    assert from_logprobs(scored) == pytest.approx(2.718281828)


def test_claims_alternate_their_sides():
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


@pytest.mark.parametrize("name", ["dense", *FAMILIES])
def test_every_family_of_layers_is_a_model(tmp_path, name):
    family = FAMILIES.get(name, DENSE)
    folder = write_config(tmp_path / "model", family)
    config = from_kwargs({"model": str(folder), "load_format": "dummy"}, "offline")
    footprint = measure(read_model_info(resolve_source(config.model, config.load)))
    assert len(footprint.kv_layers) >= 4


def test_layers_are_held_to_a_share_of_the_dense_path():
    assert row("a", Shape(8, 64, 1), 0.74, 0.92)["≥ 0.8"] == "yes"
    assert row("a", Shape(1, 0, 64), 0.73, 0.92)["≥ 0.8"] == "no"
