"""Speculation never changes an answer: a proposer that is right, wrong or random, real kernels."""

from __future__ import annotations

import random
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from galley.batch import StepPlan, drafts_among
from galley.engine.build import build_core
from galley.executor.local import LocalExecutor
from galley.executor.loopback import LoopbackExecutor
from galley.request import FinishReason, RepetitionDetectionParams, Request, SamplingParams
from galley.runner.drafts import verify
from galley.runner.runner import Runner
from tests.models.checkpoints import CASES, SIZES, StateDict, make
from tests.runner.models import MACHINE, configure
from tests.runner.proposing import Guesser

VOCAB = SIZES["vocab_size"]
I32 = np.int32


@pytest.fixture(scope="module")
def checkpoint():
    return StateDict(make(CASES["llama-mha"]))


class Drafter(Guesser):
    """Proposes the answers' own tokens ("right"), others ("wrong"), or both by chance.

    Args:
        answers: prompt → its tokens and those of its answers.
    """

    def __init__(self, kind: str, answers: dict[tuple[int, ...], list[list[int]]]) -> None:
        self.kind = kind
        self.answers = answers
        self.random = random.Random(1)

    def guess(self, known: list[int], num_prompt: int) -> list[int]:
        right = self.continuation(known, num_prompt)
        drafts = right[: self.random.randint(0, 5) if self.kind == "random" else 3]
        if self.kind == "wrong":
            return [(t + 1) % VOCAB for t in drafts]
        if self.kind == "random":
            return [t if self.random.random() < 0.7 else (t + 3) % VOCAB for t in drafts]
        return drafts

    def continuation(self, known: list[int], num_prompt: int) -> list[int]:
        for answer in self.answers[tuple(known[:num_prompt])]:
            if answer[: len(known)] == known:
                # Beyond the answer's end, drafts that no request may ever take.
                return [*answer[len(known) :], 1, 2, 3]
        return [1, 2, 3]


def prompts(n: int) -> list[list[int]]:
    rng = np.random.default_rng(3)
    shared = rng.integers(0, VOCAB, 40).tolist()
    return [shared[: 17 * (i % 3)] + rng.integers(0, VOCAB, 5 + 9 * i).tolist() for i in range(n)]


PARAMS = [
    {"temperature": 0.0, "logprobs": 2},
    {"temperature": 1.5, "seed": 5, "logprobs": 0, "prompt_logprobs": 1},
    {"temperature": 1.2, "seed": 6, "presence_penalty": 1.0, "frequency_penalty": 0.5},
    {"temperature": 0.0, "repetition_penalty": 1.3, "logprob_token_ids": [5, 9, 77]},
    {"temperature": 1.0, "seed": 7, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "logprobs": 3},
    {"temperature": 0.0, "min_tokens": 9, "stop_token_ids": list(range(0, VOCAB, 7))},
    {"temperature": 1.0, "seed": 8, "stop_token_ids": list(range(0, VOCAB, 9))},
    {"temperature": 0.0, "logit_bias": {3: 2.0, 4: 1.5}, "allowed_token_ids": list(range(40))},
    {
        "temperature": 0.0,
        "allowed_token_ids": [8, 9],
        "repetition_detection": RepetitionDetectionParams(max_pattern_size=3, min_count=4),
    },
    {"temperature": 0.0, "logits_processors": [lambda output, row: np.roll(row, len(output))]},
]
BAD_WORDS = [[3], [8, 9], [8, 8, 8]]


def requests() -> list[Request]:
    return [
        Request(
            handle=h,
            request_id=str(h),
            prompt_token_ids=np.array(prompt, I32).tobytes(),
            params=SamplingParams(max_tokens=24, **params),
            max_total_tokens=len(prompt) + 24,
            bad_words_token_ids=BAD_WORDS if h % 2 else [],
            eos_token_ids=[2],
        )
        for h, (prompt, params) in enumerate(zip(prompts(len(PARAMS)), PARAMS, strict=True))
    ]


class Watched(LocalExecutor):
    """Counts drafts and those that were accepted."""

    accepted = rejected = 0

    def sample(self, mask=None):
        result = super().sample(mask)
        if len(self.plan.draft_ids):
            drafts, accepted = self.plan.num_drafts, drafts_among(result.num_sampled)
            self.accepted += int(accepted.sum())
            self.rejected += int((drafts - accepted).sum())
        return result

    def submit(self, plan: StepPlan):
        self.plan = plan
        return super().submit(plan)


def answers_of(checkpoint, proposer, executor=Watched, repeat=1, batch=None, **flags):
    """Everything that the clients receive, by handle, and the core."""
    info = checkpoint.model_info
    config = configure(info, num_threads=1, max_model_len=192, block_size=16, **flags)
    speculator = proposer if proposer is None else proposer.speculator()
    runner = Runner(config, info, checkpoint, MACHINE.available_memory, speculator=speculator)
    core = build_core(config, executor(runner))
    tokens, ends = defaultdict(list), {}
    logprobs = {"logprobs": defaultdict(list), "prompt_logprobs": defaultdict(list)}
    for _ in range(repeat):
        tokens.clear()
        for columns in logprobs.values():
            columns.clear()
        core.add(requests() if batch is None else batch)
        while core.has_work:
            for _, out in core.step():
                core.check_integrity()
                handles = np.frombuffer(out.handles, np.int64).tolist()
                counts = np.frombuffer(out.counts, I32).tolist() or [1] * len(handles)
                ids = np.frombuffer(out.token_ids, I32).tolist()
                for handle, count in zip(handles, counts, strict=True):
                    tokens[handle] += ids[:count]
                    del ids[:count]
                for name, by_handle in logprobs.items():
                    add_logprobs(getattr(out, name), by_handle)
                ends.update({e.handle: (e.reason, e.stop_reason, e.error) for e in out.finished})
    assert core.scheduler.kv.pool.num_used == 0
    return (dict(tokens), ends, {name: dict(x) for name, x in logprobs.items()}), core


def add_logprobs(columns, by_handle) -> None:
    if columns is None:
        return
    indptr = np.frombuffer(columns.indptr, I32)
    for i, handle in enumerate(np.frombuffer(columns.handles, np.int64).tolist()):
        part = slice(indptr[i], indptr[i + 1])
        by_handle[handle].append(
            (
                int(np.frombuffer(columns.positions, I32)[i]),
                int(np.frombuffer(columns.ranks, I32)[i]),
                np.frombuffer(columns.token_ids, I32)[part].tolist(),
                np.frombuffer(columns.logprobs, np.float32)[part].tolist(),
            )
        )


@pytest.fixture(scope="module")
def plain(checkpoint):
    answers, _ = answers_of(checkpoint, None)
    assert len({reason for reason, _, _ in answers[1].values()}) == 3, "stop, length, repetition"
    return answers


@pytest.fixture(scope="module")
def drafters(plain):
    known = defaultdict(list)
    for request in requests():
        prompt = np.frombuffer(request.prompt_token_ids, I32).tolist()
        known[tuple(prompt)].append(prompt + plain[0][request.handle])
    return {kind: Drafter(kind, known) for kind in ("right", "wrong", "random")}


FLAGS = {
    "plain": {},
    "chunks": {"max_num_batched_tokens": 16},
    "few rows": {"max_num_seqs": 2},
    "no prefix cache": {"enable_prefix_caching": False},
}


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
@pytest.mark.parametrize("kind", ["right", "wrong", "random"])
def test_answers_are_those_without_drafts(checkpoint, plain, drafters, kind, flags) -> None:
    answers, core = answers_of(checkpoint, drafters[kind], **flags)
    assert answers == plain
    accepted, rejected = core.executor.accepted, core.executor.rejected
    assert (accepted > 0) == (kind != "wrong")
    assert rejected > 0, "even the right drafter goes on where an answer ends"
    assert accepted > rejected or kind != "right"


@pytest.mark.parametrize("kind", ["right", "random"])
def test_answers_under_preemption(checkpoint, plain, drafters, kind) -> None:
    answers, core = answers_of(checkpoint, drafters[kind], num_gpu_blocks_override=1 + 13)
    assert core.scheduler.counters.num_preemptions > 0
    assert core.executor.accepted > 0
    assert answers == plain


@pytest.mark.parametrize("kind", ["right", "random"])
def test_answers_from_a_prefix_cache_that_drafts_have_seen(
    checkpoint, plain, drafters, kind
) -> None:
    answers, core = answers_of(checkpoint, drafters[kind], repeat=3)
    assert core.scheduler.kv.counters.prefix_hits > 0
    assert answers == plain


def test_drafts_cross_a_process_border(checkpoint, plain, drafters) -> None:
    """All requests but the one with a logits processor: a callable cannot be sent."""
    batch = requests()[:-1]
    answers, core = answers_of(
        checkpoint, drafters["random"], executor=LoopbackExecutor, batch=batch
    )
    assert core.scheduler.step < answers_of(checkpoint, None, batch=batch)[1].scheduler.step
    handles = {request.handle for request in batch}
    tokens, ends = ({h: part[h] for h in handles} for part in plain[:2])
    assert answers == (tokens, ends, plain[2]), "the processor's request has no logprobs"


@given(
    st.lists(
        st.one_of(
            st.none(),  # a row that does not sample
            st.lists(st.integers(-1, 2), min_size=1, max_size=5),
        ),
        min_size=1,
        max_size=6,
    ),
    st.randoms(use_true_random=False),
)
def test_verify_accepts_up_to_the_first_difference(rows, chance) -> None:
    drafts = [[chance.choice([0, 1, 2]) for _ in (row or [])[1:]] for row in rows]
    want = []
    for row, guesses in zip(rows, drafts, strict=True):
        taken: list[int] = []
        for i, token in enumerate(row or []):
            if token >= 0:
                taken.append(token)
            if token < 0 or i == len(guesses) or token != guesses[i]:
                break
        want.append(taken)
    num = np.array([len(row or []) for row in rows], I32)
    plan = StepPlan(1, np.arange(len(rows), dtype=I32), num, num, num)
    plan.draft_ids = np.array([t for ids in drafts for t in ids], I32)
    tokens = np.array([t for row in rows for t in row or []], I32)
    counts, mask = verify(plan, tokens)
    assert counts.tolist() == [len(taken) for taken in want]
    assert tokens[mask].tolist() == [t for taken in want for t in taken]


def test_a_row_that_cannot_sample_fails_alone_with_drafts_beside(checkpoint, plain, drafters):
    """The failing row's masks leave no token; the others accept their drafts."""
    info = checkpoint.model_info
    config = configure(info, num_threads=1, max_model_len=192)
    proposer = drafters["right"]
    speculator = proposer if proposer is None else proposer.speculator()
    runner = Runner(config, info, checkpoint, MACHINE.available_memory, speculator=speculator)
    core = build_core(config, Watched(runner))
    batch = requests()[:2]
    bad = requests()[2]
    bad.params = SamplingParams(max_tokens=9, allowed_token_ids=[3])
    bad.bad_words_token_ids = [[3]]
    core.add([*batch, bad])
    ends = {}
    while core.has_work:
        for _, out in core.step():
            ends.update({e.handle: (e.reason, e.error) for e in out.finished})
    assert ends[bad.handle][0] == FinishReason.ERROR
    assert "no token can be sampled" in ends[bad.handle][1].message
    assert all(ends[r.handle][0] == FinishReason.LENGTH for r in batch)
    assert core.executor.accepted > 0
