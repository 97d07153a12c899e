"""Sampling parameters as columns by slot, and the rules of rows that need more.

Numbers (temperature, top_p, penalties …) are columns that the sampling kernel reads by itself:
they change when a row enters or leaves a slot, not in a step. The few rows that need more (a mask
of tokens, biases, a Python callable on their logits) have `LogitRules`; a step without such rows
costs the same however many rows it has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from galley.batch import EMPTY_I32, I32, NewRow, RequestTable, StepPlan
from galley.kernels.sampling import LogitMasks
from galley.request import PoolingParams, SamplingParams
from galley.runner.mask_rules import MaskRule, TokenSets, Words, mask_rules
from galley.runner.sampled_rows import NO_ROWS, SampledRows

#: Temperatures below this are greedy, as in vLLM.
GREEDY_BELOW = 1e-5
#: Above it all tokens are alike in single precision.
MAX_TEMPERATURE = 1e30
#: Row-level marks of `SamplingTable.num_logprobs` and `num_prompt_logprobs`.
NO_LOGPROBS = -1


#: uint64 [rows, ceil(V / 64)], bit i of word w = token 64 w + i.
MaskRows = NDArray[np.uint64]


class Column(NamedTuple):
    """A sampling parameter by slot; `value` gives it from a request's parameters and V."""

    dtype: type
    default: float
    value: Callable[[SamplingParams, int], float]


def _temperature(params: SamplingParams, _vocab_size: int) -> float:
    if params.temperature < GREEDY_BELOW:
        return 0.0
    return min(params.temperature, MAX_TEMPERATURE)


#: Named as the fields of `SampleParams` and as the columns that the native op `sample` reads.
COLUMNS = {
    "temperature": Column(np.float32, 0.0, _temperature),
    "top_p": Column(np.float32, 1.0, lambda p, _: p.top_p),
    "min_p": Column(np.float32, 0.0, lambda p, _: p.min_p),
    "top_k": Column(np.int32, 0, lambda p, vocab_size: min(max(p.top_k, 0), vocab_size)),
    "presence": Column(np.float32, 0.0, lambda p, _: p.presence_penalty),
    "frequency": Column(np.float32, 0.0, lambda p, _: p.frequency_penalty),
    "repetition": Column(np.float32, 1.0, lambda p, _: p.repetition_penalty),
    "seed": Column(np.uint64, 0, lambda p, _: (p.seed or 0) % 2**64),
}
PENALTIES = ("presence", "frequency", "repetition")


class LogitRules(msgspec.Struct):
    """Rules that restrict or change the logits of a row, beyond the columns.

    Attributes:
        masks: rules that restrict the next token.
        bias_ids, bias_values: added to the logits.
        processors: callables on the row's logits, in order.
    """

    masks: list[MaskRule]
    bias_ids: I32
    bias_values: NDArray[np.float32]
    processors: list[Any]

    @property
    def is_empty(self) -> bool:
        return not (self.masks or len(self.bias_ids) or self.processors)


class SamplingTable:
    """The columns, [slots] each; events (`set_row`, `clear`) are the only writers.

    Attributes:
        columns: name → array, bound by the sampling kernel: those of `COLUMNS`, and num_logprobs
            int32.
        num_logprobs, num_prompt_logprobs: int32, k wanted of sampled and of prompt tokens, -1 =
            none. The column `num_logprobs` is the larger one, at most `max_top`; what a request
            wants beyond that is computed from the logits.
        greedy: bool, True where the next token is that of the largest logit, and nothing else is
            read of the logits.
        has_rules, has_processors: bool, True where `rules` has an entry, and one with processors.
        logprob_ids: slot → tokens whose logprobs are wanted instead of the most likely ones.
        allowed_logprobs: slot → how many of the most likely tokens are wanted of those allowed.
    """

    def __init__(self, num_slots: int, vocab_size: int, max_top: int) -> None:
        self.vocab_size = vocab_size
        self.max_top = max_top
        self._sets = TokenSets(vocab_size)
        self._no_words: MaskRows = np.empty((0, self._sets.num_words), np.uint64)
        self.columns: dict[str, NDArray[Any]] = {
            name: np.full(num_slots, column.default, column.dtype)
            for name, column in COLUMNS.items()
        }
        self.columns["num_logprobs"] = np.full(num_slots, NO_LOGPROBS, np.int32)
        self.num_logprobs = np.full(num_slots, NO_LOGPROBS, np.int32)
        self.num_prompt_logprobs = np.full(num_slots, NO_LOGPROBS, np.int32)
        self.logprob_ids: dict[int, I32] = {}
        self.allowed_logprobs: dict[int, int] = {}
        self.greedy = np.zeros(num_slots, np.bool_)
        self.has_rules = np.zeros(num_slots, np.bool_)
        self.has_processors = np.zeros(num_slots, np.bool_)
        self.rules: dict[int, LogitRules] = {}

    def set_row(self, row: NewRow) -> None:
        """A request enters its slot."""
        if isinstance(row.params, PoolingParams):
            return  # samples nothing
        p, slot = row.params, row.slot
        for name, column in COLUMNS.items():
            self.columns[name][slot] = column.value(p, self.vocab_size)
        wanted = self._wanted(p.logprobs)
        of_prompt = self._wanted(p.prompt_logprobs)
        self.num_logprobs[slot] = wanted
        self.num_prompt_logprobs[slot] = of_prompt
        if p.logprob_token_ids is not None:
            self.num_logprobs[slot] = NO_LOGPROBS
            self.logprob_ids[slot] = np.array(p.logprob_token_ids, np.int32)
            wanted = 0  # of the sampled token itself
        elif p.allowed_logprobs:
            self.num_logprobs[slot] = NO_LOGPROBS
            self.allowed_logprobs[slot], wanted = wanted, 0
        self.columns["num_logprobs"][slot] = min(max(wanted, of_prompt), self.max_top)
        self._set_rules(slot, self._rules_of(row))
        penalties = any(self.columns[name][slot] != COLUMNS[name].default for name in PENALTIES)
        random = self.columns["temperature"][slot] != 0
        wants_logprobs = self.columns["num_logprobs"][slot] != NO_LOGPROBS
        self.greedy[slot] = not (random or penalties or wants_logprobs or self.has_rules[slot])

    def clear(self, slot: int) -> None:
        """The slot is empty: drop its callables and masks."""
        self.greedy[slot] = False
        self._set_rules(slot, None)
        self.logprob_ids.pop(slot, None)
        self.allowed_logprobs.pop(slot, None)

    def _wanted(self, k: int | None) -> int:
        if k is None:
            return NO_LOGPROBS
        return self.vocab_size if k == -1 else min(k, self.vocab_size)

    def _set_rules(self, slot: int, rules: LogitRules | None) -> None:
        self.has_rules[slot] = rules is not None
        self.has_processors[slot] = rules is not None and bool(rules.processors)
        if rules is None:
            self.rules.pop(slot, None)
        else:
            self.rules[slot] = rules

    def _rules_of(self, row: NewRow) -> LogitRules | None:
        params = row.sampling
        bias = params.logit_bias or {}
        rules = LogitRules(
            masks=mask_rules(row, self._sets),
            bias_ids=np.array(list(bias), np.int32),
            bias_values=np.array(list(bias.values()), np.float32),
            processors=list(params.logits_processors or ()),
        )
        return None if rules.is_empty else rules

    def ruled(self, sampled: SampledRows) -> SampledRows:
        """Those whose slot has rules."""
        if not self.rules:
            return NO_ROWS
        return sampled.select(self.has_rules[sampled.slots])

    def processed(self, ruled: SampledRows) -> SampledRows:
        """Those whose slot has processors."""
        return ruled.select(self.has_processors[ruled.slots]) if len(ruled) else ruled

    def logit_masks(
        self,
        plan: StepPlan,
        ruled: SampledRows,
        table: RequestTable,
        grammar: MaskRows | None = None,
    ) -> LogitMasks | None:
        """Masks and biases of this step's logit rows; None where no row has any.

        Args:
            ruled: sampled rows of slots with rules.
            grammar: uint64 [len(plan.masked_logits), ceil(V / 64)] words of the tokens that a
                constraint allows at these logit rows. They are used where they lie, and lose the
                tokens that a row's own rules exclude.
        """
        if not len(ruled) and grammar is None:
            return None
        total = int(plan.num_logits.sum())
        shared_rows = EMPTY_I32 if grammar is None else plan.masked_logits
        shared = self._no_words if grammar is None else grammar
        masks = self._masks(ruled, table, shared_rows, shared)
        indptr, ids, values = self._biases(ruled, total)
        if not len(ids) and not masks and not len(shared_rows):
            return None
        addresses = np.zeros(total, np.uint64)
        for row, words in masks.items():
            addresses[row] = words.ctypes.data
        if len(shared_rows):
            places = np.arange(len(shared), dtype=np.uint64) * np.uint64(shared.strides[0])
            addresses[shared_rows] = np.uint64(shared.ctypes.data) + places
        return LogitMasks(
            masks=masks,
            shared_rows=shared_rows,
            shared=shared,
            addresses=addresses,
            bias_indptr=indptr,
            bias_ids=ids,
            bias_values=values,
        )

    def _masks(
        self, ruled: SampledRows, table: RequestTable, shared_rows: I32, shared: MaskRows
    ) -> dict[int, Words]:
        """Logit row → the tokens that its own rules allow, of rows that have some. In a row of a
        constraint, `shared` loses the others instead.
        """
        masks: dict[int, Words] = {}
        if not len(ruled):
            return masks
        place = {row: i for i, row in enumerate(shared_rows.tolist())}
        for slot, row, known in zip(
            ruled.slots.tolist(), ruled.logit_rows.tolist(), ruled.positions.tolist(), strict=True
        ):
            rules, token_ids = self.rules[slot].masks, table.token_ids[slot, :known]
            num_prompt = int(table.num_prompt[slot])
            if row in place:
                _restrict(shared[place[row]], rules, token_ids, num_prompt)
                continue
            allowed = _allowed(rules, token_ids, num_prompt)
            if allowed is not None:
                masks[row] = allowed
        return masks

    def _biases(self, ruled: SampledRows, total: int) -> tuple[I32, I32, NDArray[np.float32]]:
        """Indptr [total + 1], token ids and values of the logit rows' biases."""
        counts = np.zeros(total + 1, np.int32)
        ids, values = [EMPTY_I32], [np.empty(0, np.float32)]
        for slot, row in zip(ruled.slots.tolist(), ruled.logit_rows.tolist(), strict=True):
            rules = self.rules[slot]
            counts[row + 1] = len(rules.bias_ids)
            ids.append(rules.bias_ids)
            values.append(rules.bias_values)
        return np.cumsum(counts, dtype=np.int32), np.concatenate(ids), np.concatenate(values)


def _allowed(rules: list[MaskRule], token_ids: I32, num_prompt: int) -> Words | None:
    """The tokens that all rules allow behind `token_ids`; None = every token."""
    words: Words | None = None
    for rule in rules:
        allowed = rule.allowed(token_ids, num_prompt)
        if allowed is not None:
            words = allowed if words is None else words & allowed
    return words


def _restrict(words: Words, rules: list[MaskRule], token_ids: I32, num_prompt: int) -> None:
    """Remove from a constraint's tokens those that the rules do not allow."""
    for rule in rules:
        allowed = rule.allowed(token_ids, num_prompt)
        if allowed is not None and not (rule.yields and not (words & allowed).any()):
            words &= allowed
