"""`Speculator`: a proposer and the lengths of its drafts, as the runner uses them."""

from __future__ import annotations

from importlib import import_module
from time import perf_counter

import msgspec
import numpy as np
from numpy.typing import NDArray

from galley.batch import I32, RequestTable, StepPlan
from galley.config import EngineConfig, ModelInfo
from galley.config.registries import PROPOSERS
from galley.request import SamplingParams
from galley.spec.detect import find_method
from galley.spec.lengths import AdaptiveLengths, FixedLengths, Lengths
from galley.spec.proposer import Proposer, Target, hidden_reader


class Speculator:
    """Proposes the drafts of each next step.

    Args:
        num_slots: of the table.

    Attributes:
        memory: bytes that the proposer takes, before the model is loaded.
        reader: the proposer, if it reads hidden states of the model.
    """

    def __init__(self, proposer: Proposer, lengths: Lengths, num_slots: int) -> None:
        self.memory = proposer.memory
        self._proposer, self._lengths = proposer, lengths
        self.reader = hidden_reader(proposer)
        self._rests = False
        self._is_off: NDArray[np.bool_] = np.zeros(num_slots, np.bool_)

    def apply_plan(self, plan: StepPlan, table: RequestTable) -> None:
        """Follow sequences out of slots and into them; `table` is as it was before the plan."""
        if len(plan.freed_slots):
            slots = plan.freed_slots.astype(np.intp)
            self._proposer.leave(table, slots)
            self._lengths.clear(slots)
        for row in plan.new_rows:
            params = row.params
            self._is_off[row.slot] = (
                not isinstance(params, SamplingParams) or not params.speculative
            )
            self._proposer.enter(row)

    def stepped(self, plan: StepPlan, seconds: float | None) -> None:
        """A step was computed in so many seconds; None: they say nothing about its cost."""
        self._proposer.stepped(plan)
        if seconds is not None and not self._rests:
            self._lengths.stepped(plan, seconds)

    def propose(
        self, table: RequestTable, slots: NDArray[np.intp], eligible: NDArray[np.bool_]
    ) -> tuple[I32, I32]:
        """`drafts_indptr` and `drafts_ids` of a result whose rows are `slots`.

        Args:
            table: with the tokens just sampled.
            eligible: [n] rows that may get drafts.
        """
        rows = np.flatnonzero(eligible & ~self._is_off[slots] & self._lengths.asks(slots))
        self._rests = not len(rows)
        indptr: I32 = np.zeros(len(slots) + 1, np.int32)
        empty: I32 = np.empty(0, np.int32)
        follows = self.reader is not None and self.reader.follows
        if not len(rows) and not follows:
            return indptr, empty
        asked = slots[rows]
        most = self._lengths.most(table, asked, len(slots))
        if not most.any() and not follows:
            return indptr, empty
        begin = perf_counter()
        drafts = self._proposer.propose(table, asked, most)
        if most.any():
            self._lengths.proposed(asked, perf_counter() - begin)
        counts = self._lengths.choose(table, asked, drafts, len(slots))
        if not counts.any():
            return indptr, empty
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
    return Speculator(proposer, lengths, num_slots)
