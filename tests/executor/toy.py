"""A hand-written engine over an `Executor`: fixed blocks per slot, plans made row by row.

It stands where scheduler and KV cache will be, so that executors and runners can be tested alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from galley.batch import NewRow, StepPlan, StepResult
from galley.executor import Executor
from galley.request import SamplingParams

GREEDY = SamplingParams(temperature=0.0, max_tokens=None)


@dataclass
class Sequence_:
    """A request in its slot; its tokens, and how many of them are computed."""

    slot: int
    tokens: list[int]
    num_prompt: int
    params: SamplingParams = field(default_factory=lambda: GREEDY)
    bad_words: list[list[int]] = field(default_factory=list)
    computed: int = 0
    entered: bool = False

    @property
    def output(self) -> list[int]:
        return self.tokens[self.num_prompt :]


class Toy:
    """Sequences with block ids of their own, as many for each KV group: with one group, slot s has
    blocks 1 + s * each .. (s + 1) * each. Groups of states are not handled."""

    def __init__(self, executor: Executor, slots: int, max_len: int) -> None:
        self.executor = executor
        self.block_size = executor.groups[0].block_size
        self.each = -(-max_len // self.block_size)
        self.num_groups = len(executor.groups)
        assert all(group.kind != "state" for group in executor.groups)
        assert self.num_groups * slots * self.each + 1 <= executor.num_blocks
        self.step = 0
        self.freed: list[int] = []
        self.num_steps_of_prompt: dict[int, int] = {}

    def add(self, slot: int, prompt: Sequence[int], params: SamplingParams = GREEDY, **more):
        return Sequence_(slot, list(prompt), len(prompt), params, **more)

    def free(self, sequence: Sequence_) -> None:
        self.freed.append(sequence.slot)

    def plan(self, rows: Sequence[tuple[Sequence_, int]], all_logits: bool = False) -> StepPlan:
        """One step: (sequence, tokens to compute) per row."""
        self.step += 1
        new_rows, blocks = [], []
        num_new, num_logits, num_sampled = [], [], []
        for sequence, n in rows:
            if not sequence.entered:
                new_rows.append(new_row(sequence))
                sequence.entered = True
                first = 1 + sequence.slot * self.num_groups * self.each
                blocks += [
                    (group, sequence.slot, i, first + group * self.each + i)
                    for group in range(self.num_groups)
                    for i in range(self.each)
                ]
            yields = sequence.computed + n == len(sequence.tokens)
            wants_all = all_logits or sequence.params.prompt_logprobs is not None
            num_new.append(n)
            num_logits.append(n if wants_all else int(yields))
            num_sampled.append(int(yields))
        columns = np.array(blocks, np.int32).reshape(-1, 4)
        freed, self.freed = self.freed, []
        return StepPlan(
            step=self.step,
            slots=np.array([s.slot for s, _ in rows], np.int32),
            num_new=np.array(num_new, np.int32),
            num_logits=np.array(num_logits, np.int32),
            num_sampled=np.array(num_sampled, np.int32),
            new_rows=new_rows,
            freed_slots=np.array(freed, np.int32),
            block_groups=columns[:, 0].copy(),
            block_slots=columns[:, 1].copy(),
            block_indices=columns[:, 2].copy(),
            block_ids=columns[:, 3].copy(),
        )

    def run(self, rows: Sequence[tuple[Sequence_, int]], mask=None) -> StepResult:
        """Plan, submit, sample, and take the tokens in."""
        plan = self.plan(rows)
        result = self.executor.submit(plan).sample(mask)
        at = 0
        for (sequence, n), count in zip(rows, result.num_sampled.tolist(), strict=True):
            sequence.computed += n
            sequence.tokens += result.token_ids[at : at + count].tolist()
            at += count
        return result

    def generate(self, sequences: Sequence[Sequence_], num_tokens: int, budget: int = 2048):
        """All sequences to `num_tokens` of output, under one budget; the results of all steps."""
        results = []
        while any(len(s.output) < num_tokens for s in sequences):
            left, rows = budget, []
            for s in sequences:
                n = min(left, len(s.tokens) - s.computed)
                if len(s.output) < num_tokens and n > 0:
                    rows.append((s, n))
                    left -= n
            results.append(self.run(rows))
        return results


def new_row(sequence: Sequence_) -> NewRow:
    return NewRow(
        slot=sequence.slot,
        handle=1000 + sequence.slot,
        token_ids=np.array(sequence.tokens, np.int32),
        num_prompt=sequence.num_prompt,
        num_computed=sequence.computed,
        params=sequence.params,
        eos_token_ids=[2],
        bad_words_token_ids=sequence.bad_words,
    )
