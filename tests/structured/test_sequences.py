"""Constrained sequences in an engine: drafts, parking, compilation that fails, accounting."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from galley import LLM, SamplingParams
from galley.batch import StepPlan
from galley.errors import InvalidRequest
from galley.request import Constraint, TokenMarker
from galley.structured import compiler
from tests.runner.proposing import Guesser
from tests.structured.test_answers import FORMS, PERSON, prompts, run, structured
from tests.structured.tiny import answer, open_tiny, write_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def llm(folder: Path) -> Iterator[LLM]:
    with open_tiny(folder) as made:
        yield made


class Guesses(Guesser):
    """Proposes what it has been told, with an error now and then."""

    def __init__(self, answers: list[list[int]]) -> None:
        self.answers = answers
        self.drafts = 0

    def guess(self, known: list[int], num_prompt: int) -> list[int]:
        length, known = len(known), known[num_prompt:]
        drafts: list[int] = []
        for own in self.answers:
            if own[: len(known)] == known:
                drafts = own[len(known) : len(known) + 4]
        if length % 3 == 0:
            drafts = [*drafts[:1], 60, *drafts[1:]]
        self.drafts += len(drafts)
        return drafts


@pytest.mark.parametrize("jump", [True, False])
def test_drafts_are_masked_too(folder: Path, jump: bool) -> None:
    marker = {"choice": ["yes", "no"], "start_after": [TokenMarker.of_tokens((75,))]}
    params = [
        structured(form, seed=i, max_tokens=40, logprobs=1 if i % 3 else None)
        for i, form in enumerate([*FORMS, marker])
    ]
    with open_tiny(folder) as plain:
        plain._core.constrained.jump_forward = False
        expected = run(plain, params)
    with open_tiny(folder) as llm:
        core = llm._core
        core.constrained.jump_forward = jump
        guesses = Guesses([one[1] for [one] in expected])
        core.executor._runner._speculator = guesses.speculator()
        assert run(llm, params) == expected
        assert guesses.drafts > 100
        steps = core.counters.num_steps
        assert run(llm, params) == expected  # none waits for its grammar any longer
        assert core.counters.num_steps - steps < 0.7 * max(len(one[1]) for [one] in expected)


class Silent(Guesser):
    def guess(self, known: list[int], num_prompt: int) -> list[int]:
        return []


class Wrong(Guesses):
    """Proposes what the constraint forbids, behind one token that it may allow."""

    def guess(self, known: list[int], num_prompt: int) -> list[int]:
        right = super().guess(known, num_prompt)
        return [*right[:1], 60, 61, 62, 63]


def test_drafts_that_a_constraint_forbids_are_not_computed(folder: Path) -> None:
    params = [structured(form, seed=i, max_tokens=40) for i, form in enumerate(FORMS)]
    with open_tiny(folder) as plain:
        expected = run(plain, params)
    with open_tiny(folder) as llm:
        core = llm._core
        guesses = Wrong([one[1] for [one] in expected])
        core.executor._runner._speculator = guesses.speculator()
        planned: list[tuple[bytes, int]] = []
        masks = core.constrained.masks

        def watched(plan: StepPlan) -> Any:
            found = masks(plan)
            first, drafts = np.cumsum(plan.num_sampled) - plan.num_sampled, iter(plan.draft_ids)
            for row, count in enumerate(plan.num_drafts):
                for i in range(count):
                    planned.append((found[first[row] + i].tobytes(), int(next(drafts))))
            return found

        core.constrained.masks = watched
        assert run(llm, params) == expected
    assert planned
    for mask, token in planned:
        assert mask[token // 8] >> token % 8 & 1


def test_certain_tokens_are_drafts_where_each_is_sampled(folder: Path) -> None:
    """With logprobs: the logits of each are wanted, but not a step for each."""
    params = [structured({"json": PERSON}, max_tokens=80, logprobs=2, seed=1)]
    with open_tiny(folder) as plain:
        expected = run(plain, params)
        steps = plain._core.counters.num_steps
    with open_tiny(folder) as llm:
        core = llm._core
        core.executor._runner._speculator = Silent().speculator()
        assert run(llm, params) == expected
        assert core.counters.forced_tokens == 0
        assert core.scheduler.draft_counts.num_rejected == 0
        assert core.counters.num_steps < 0.9 * steps


def test_a_request_waits_for_its_grammar_and_blocks_none(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_compile = threading.Event()
    compile_now = compiler.Compiler._compile

    def slowly(self: Any, job: Any) -> Any:
        assert may_compile.wait(60)
        return compile_now(self, job)

    monkeypatch.setattr(compiler.Compiler, "_compile", slowly)
    core, client = llm._core, llm._client
    waiting = client.add(prompts(1)[0], structured({"json": PERSON}), "waiting")
    free = client.add(prompts(1)[0], SamplingParams(max_tokens=8, ignore_eos=True), "free")
    while not free.ended:
        client.step()
    assert core.stats().waiting_by_reason == {"grammar": 1}
    assert not waiting.ended
    aborted = client.add(prompts(1)[0], structured({"json": PERSON}), "aborted")
    client.cancel(aborted)
    assert not core.pausing.drained()
    may_compile.set()
    while not waiting.ended:
        client.step()
    output = waiting.take()
    assert output is not None
    assert output.outputs[0].finish_reason in ("stop", "length")
    assert answer(output) == run(llm, [structured({"json": PERSON})])[0]
    assert not len(core.constrained)
    assert core.stats().num_waiting == 0


def test_masks_are_counted(llm: LLM) -> None:
    counters = llm._core.counters
    free = SamplingParams(max_tokens=8, temperature=0.0)
    run(llm, [free])
    assert (counters.masks, counters.mask_seconds, counters.advance_seconds) == (0, 0.0, 0.0)
    llm._core.constrained.jump_forward = False
    [[own], _] = run(llm, [structured({"regex": "[ab]{5}"}), free])
    assert counters.masks == len(own[1])
    assert counters.mask_seconds > 0
    assert counters.advance_seconds > 0
    assert counters.forced_tokens == 0


def test_a_grammar_that_fails_in_the_engine_fails_its_request(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The front end has compiled it, without a vocabulary: seldom, but possible."""
    from galley.structured import llguidance_backend

    def refuse(self: Any, constraint: Constraint) -> Any:
        raise InvalidRequest("there is no such grammar.", field=constraint.field)

    monkeypatch.setattr(llguidance_backend.LLGuidance, "compile", refuse)
    with pytest.raises(InvalidRequest, match="no such grammar"):
        run(llm, [structured({"regex": "a+"})])
    assert not len(llm._core.constrained)
    monkeypatch.undo()
    assert run(llm, [structured({"regex": "a"})])[0][0][2] == "a"


def test_a_grammar_that_takes_too_long_fails_its_request_alone(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that compiles it is left to itself, and others compile in another one."""
    hangs = threading.Event()
    compile_now = compiler.Compiler._compile

    def hang(self: Any, job: Any) -> Any:
        if job.key.text == "hang":
            assert hangs.wait(60)
        return compile_now(self, job)

    monkeypatch.setattr(compiler.Compiler, "_compile", hang)
    monkeypatch.setattr(llm._core.constrained.compiler, "_limit", 0.2)
    with pytest.raises(InvalidRequest, match=r"regex is too complex: .* more than 0.2 seconds"):
        run(llm, [structured({"regex": "hang"})])
    monkeypatch.setattr(llm._core.constrained.compiler, "_limit", 60.0)
    assert run(llm, [structured({"regex": "ok"})])[0][0][2] == "ok"
    hangs.set()
    assert not llm._core.constrained.compiler.compiling


def test_grammars_are_kept_and_the_oldest_are_dropped(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "KEPT", 2)
    compiled: list[str] = []
    compile_now = compiler.Compiler._compile

    def noted(self: Any, job: Any) -> Any:
        compiled.append(job.key.text)
        return compile_now(self, job)

    monkeypatch.setattr(compiler.Compiler, "_compile", noted)
    for text in ("a", "a", "b", "a", "c", "a", "b"):
        assert run(llm, [structured({"regex": text})])[0][0][2] == text
    assert compiled == ["a", "b", "c", "b"]


def test_a_slot_keeps_nothing_of_a_constrained_sequence(folder: Path) -> None:
    with open_tiny(folder, max_num_seqs=1) as llm:
        free = [SamplingParams(max_tokens=8, ignore_eos=True, temperature=1.0, seed=4)]
        alone = run(llm, free)
        run(llm, [structured({"choice": ["yes"]})])
        assert run(llm, free) == alone
        both = [structured({"choice": ["yes"]}), *free, structured({"choice": ["no"]})]
        assert [one[0][2] for one in run(llm, both)][::2] == ["yes", "no"]
