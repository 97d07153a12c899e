"""`Speculator`: a proposer and the lengths of its drafts, as the runner uses them."""

from __future__ import annotations

from importlib import import_module
from time import perf_counter

import msgspec
import numpy as np
from numpy.typing import NDArray

from galley.batch import EMPTY_I32, I32, RequestTable, StepPlan
from galley.config import EngineConfig, ModelInfo
from galley.config.registries import PROPOSERS
from galley.request import SamplingParams
from galley.spec.detect import find_method
from galley.spec.lengths import AdaptiveLengths, FixedLengths, Lengths
from galley.spec.proposer import Proposer, Target, hidden_reader


class Speculator:
    """Proposes the drafts of each next step.

    Attributes:
        memory: bytes that the proposer takes, before the model is loaded.
        reader: the proposer, if it reads hidden states of the model.
    """

    def __init__(self, proposer: Proposer, lengths: Lengths) -> None:
        self.memory = proposer.memory
        self._proposer, self._lengths = proposer, lengths
        self.reader = hidden_reader(proposer)
        #: slots of requests without drafts
        self._off: set[int] = set()
        #: the step that is measured, if it is; when it began, plus what it took to propose
        self._measured: StepPlan | None = None
        self._begin = 0.0

    def apply_plan(self, plan: StepPlan, table: RequestTable) -> None:
        """Follow sequences out of slots and into them; `table` is as it was before the plan."""
        now = perf_counter()
        # Without new rows there was work all the time: all of it is what the step before has cost.
        if self._measured is not None and not plan.new_rows:
            self._lengths.stepped(self._measured, now - self._begin)
        self._measured, self._begin = None, now
        if len(plan.freed_slots):
            slots = plan.freed_slots.astype(np.intp)
            self._proposer.leave(table, slots)
            self._lengths.clear(slots)
        for row in plan.new_rows:
            params = row.params
            if isinstance(params, SamplingParams) and params.speculative:
                self._off.discard(row.slot)
                self._lengths.enter(row.slot)
            else:
                self._off.add(row.slot)
            self._proposer.enter(row)

    def stepped(self, plan: StepPlan) -> None:
        """A step was computed."""
        self._proposer.stepped(plan)

    def propose(
        self, table: RequestTable, plan: StepPlan, eligible: NDArray[np.bool_]
    ) -> tuple[I32, I32]:
        """`drafts_indptr` and `drafts_ids` of the plan's result.

        Args:
            table: with the tokens just sampled.
            eligible: [n] rows that may get drafts.
        """
        if self._lengths.rests():
            return np.zeros(len(plan.slots) + 1, np.int32), EMPTY_I32
        begin = perf_counter()
        slots = plan.slots.astype(np.intp)
        eligible = eligible & self._lengths.asks(slots)
        if self._off:
            eligible &= ~np.isin(slots, list(self._off))
        rows = np.flatnonzero(eligible)
        follows = self.reader is not None and self.reader.follows
        indptr: I32 = np.zeros(len(slots) + 1, np.int32)
        if not len(rows) and not follows:
            return indptr, EMPTY_I32
        if len(rows):
            self._measured = plan
        asked = slots[rows]
        most = self._lengths.most(table, asked, len(slots))
        wanted = most.any()
        if not wanted and not follows:
            return indptr, EMPTY_I32
        drafts = self._proposer.propose(table, asked, most)
        seconds = perf_counter() - begin
        self._begin += seconds
        if not wanted:
            return indptr, EMPTY_I32
        counts = self._lengths.choose(table, asked, drafts, len(slots), seconds)
        if not counts.any():
            return indptr, EMPTY_I32
        indptr[rows + 1] = counts
        np.cumsum(indptr, out=indptr)
        return indptr, drafts.ids[np.arange(drafts.ids.shape[1]) < counts[:, None]]


def make_speculator(
    config: EngineConfig, model_info: ModelInfo, available: int
) -> Speculator | None:
    """The speculator that a resolved configuration asks for; None where drafts are off.

    Args:
        model_info: of the model that drafts are for.
        available: bytes of memory that could be taken before anything was loaded.

    Raises:
        ConfigError, ModelError: it cannot be made.
    """
    settings = config.speculative.settings
    if settings is None or config.model.runner == "pooling":
        return None
    num_slots = config.scheduler.max_num_seqs
    assert num_slots is not None, "the configuration is not resolved"
    if settings.method == "auto":
        settings = msgspec.structs.replace(settings, method=find_method(settings, config))
    module, function = PROPOSERS[settings.method]
    target = Target(config, model_info, num_slots, available)
    proposer: Proposer = getattr(import_module(module), function)(settings, target)
    by_batch = settings.num_speculative_tokens_per_batch_size
    lengths: Lengths
    if settings.draft_length == "fixed":
        lengths = FixedLengths(proposer.width, by_batch)
    else:
        lengths = AdaptiveLengths(proposer, num_slots, by_batch)
    return Speculator(proposer, lengths)
