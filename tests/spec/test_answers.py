"""Answers with every proposer are those without, and drafts are accepted and rejected.

Checklist 45, 118, 119, 121, 124, 125, 203.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from galley import LLM, SamplingParams
from galley.config.registries import DRAFT_HEADS, PROPOSERS
from galley.errors import ConfigError
from galley.frontend.metric_values import Counter
from galley.loader.source import default_model
from galley.outputs import joined_figures
from galley.spec.ngram import ngram
from tests.equality.workload import answer, prompts
from tests.equality.workload import params as workload_params
from tests.small_model import small_model

COUNT = 16
WAYS: dict[str, dict[str, Any]] = {
    "ngram": {"method": "ngram"},
    "ngram-fixed": {"method": "ngram", "draft_length": "fixed", "prompt_lookup_min": 1},
    "suffix": {"method": "suffix"},
    "suffix-fixed": {"method": "suffix", "draft_length": "fixed", "num_speculative_tokens": 6},
    "draft_model": {
        "method": "draft_model",
        "draft_length": "fixed",
        "num_speculative_tokens": 3,
        "model": str(small_model()),
    },
    "draft_model-adaptive": {"model": str(default_model())},
    "custom_class": {
        "method": "custom_class",
        "draft_length": "fixed",
        "model": f"{__name__}.Copies",
    },
}


def Copies(settings: Any, num_slots: int) -> Any:
    """A proposer of the user's own."""
    return ngram(settings, num_slots)


def engine(**flags: Any) -> LLM:
    return LLM(model=str(small_model()), max_model_len=512, max_num_seqs=16, **flags)


def asked() -> list[SamplingParams]:
    return [msgspec.structs.replace(params, max_tokens=24) for params in workload_params(COUNT)]


def run(llm: LLM) -> list[Any]:
    """Texts that repeat themselves, of requests that differ in everything."""
    texts = [f"{p[:160]}\n{p[:160]}\n{p[:40]}" for p in prompts(COUNT)]
    return [answer(o) for o in llm.generate(texts, asked())]


def counted(llm: LLM) -> dict[str, int]:
    return {
        m.name: m.value
        for m in llm.get_metrics()
        if m.name.startswith("vllm:spec_decode") and isinstance(m, Counter)
    }


@pytest.fixture(scope="module")
def plain() -> list[Any]:
    llm = engine(spec_method="none")
    answers = run(llm)
    assert not counted(llm), "without drafts there are no metrics of them"
    return answers


def test_every_proposer_is_here() -> None:
    ways = {way.get("method", "draft_model") for way in WAYS.values()}
    assert ways | set(DRAFT_HEADS) == set(PROPOSERS), "heads are in test_heads"


@pytest.mark.parametrize("way", WAYS)
def test_answers_are_those_without_drafts(plain: list[Any], way: str) -> None:
    llm = engine(speculative_config=WAYS[way])
    assert run(llm) == plain
    assert run(llm) == plain, "from the prefix cache, and with outputs to look drafts up in"
    found = counted(llm)
    names = ("drafts", "draft_tokens", "accepted_tokens")
    drafts, tokens, accepted = (found[f"vllm:spec_decode_num_{name}"] for name in names)
    assert drafts <= tokens
    if "draft_length" in WAYS[way]:  # else their number depends on how long steps took
        assert 0 < accepted < tokens
    by_place = "vllm:spec_decode_num_accepted_tokens_per_pos"
    [places] = [m.values for m in llm.get_metrics() if m.name == by_place]
    assert sum(places) == accepted
    assert places == sorted(places, reverse=True)


def test_a_stop_string_inside_accepted_drafts() -> None:
    """The answer ends in the middle of what a step brought; what follows is not in it."""
    text = "one two three four five six seven eight nine ten. " * 4 + "one two three"
    greedy = SamplingParams(max_tokens=40, temperature=0.0, stop=[" six"])
    fixed = {"method": "ngram", "draft_length": "fixed"}
    [want], [got] = (
        engine(**flags).generate([text], greedy)
        for flags in ({"spec_method": "none"}, {"speculative_config": fixed})
    )
    assert answer(got) == answer(want)


def test_each_answer_has_the_figures_of_its_drafts(plain: list[Any]) -> None:
    way = WAYS["ngram-fixed"]
    llm = engine(speculative_config=way, per_request_spec_decode_metrics="detailed")
    text = "one two three four five " * 6
    params = [SamplingParams(max_tokens=30, n=2, seed=1, speculative=on) for on in (True, False)]
    drafted, undrafted = llm.generate([text, text], params)
    parts = [o.spec_decode_metrics for o in drafted.outputs]
    figures = joined_figures(parts).to_dict()
    found = counted(llm)
    assert figures["num_spec_steps"] == found["vllm:spec_decode_num_drafts"]
    assert figures["num_draft_tokens"] == found["vllm:spec_decode_num_draft_tokens"]
    assert figures["num_accepted_draft_tokens"] == found["vllm:spec_decode_num_accepted_tokens"]
    for part in parts:
        steps = part.per_step_accepted
        assert part.histogram == [steps.count(n) for n in range(part.num_spec_tokens + 1)]
        assert sum(part.per_step_drafted) == part.num_draft_tokens > sum(steps) > 0
    nothing = undrafted.outputs[0].spec_decode_metrics.to_dict()
    assert (nothing["num_draft_tokens"], nothing["mean_acceptance_length"]) == (0, None)
    with pytest.raises(ConfigError, match="needs speculative_config"):
        engine(per_request_spec_decode_metrics="summary", spec_method="none")


def test_a_request_can_do_without(plain: list[Any]) -> None:
    llm = engine(speculative_config=WAYS["ngram-fixed"])
    texts = ["one two three four " * 8]
    params = SamplingParams(max_tokens=12, temperature=0.0, speculative=False)
    llm.generate(texts, params)
    assert not counted(llm)["vllm:spec_decode_num_draft_tokens"]
    llm.generate(texts, msgspec.structs.replace(params, speculative=True))
    assert counted(llm)["vllm:spec_decode_num_draft_tokens"]


def test_a_class_that_cannot_be_loaded_is_refused() -> None:
    for name in ("tests.spec.nothing.Here", "nodots", "tests.spec.test_answers.nothing"):
        with pytest.raises(ConfigError, match="cannot be loaded"):
            engine(speculative_config={"method": "custom_class", "model": name})
    with pytest.raises(ConfigError, match="has no"):
        engine(speculative_config={"method": "custom_class", "model": "builtins.slice"})
