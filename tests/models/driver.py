"""Drives an executable as a scheduler would: rows, chunks, blocks dealt from a shuffled pool."""

from __future__ import annotations

import numpy as np

from galley.batch import NewRow, RequestTable, StepPlan
from galley.kernels.backend import Backend, Executable, StepLimits
from galley.layers.weights import CheckpointWeights
from galley.models.decoder import Decoder, Stage
from galley.models.registry import build_model
from galley.request import SamplingParams

SLOTS, MAX_LEN = 8, 256
LIMITS = StepLimits(tokens=512, rows=SLOTS, logits=512)


def load(checkpoint, backend: Backend) -> Decoder:
    source = CheckpointWeights(checkpoint, backend)
    model = build_model(checkpoint.model_info, source, Stage(max_positions=MAX_LEN))
    source.finish()
    return model


class Driver:
    """Sequences in slots; each step computes some tokens of some of them."""

    def __init__(
        self,
        executable: Executable,
        block_size: int = 16,
        seed: int = 0,
        state_interval: int = 64,
    ) -> None:
        self.executable = executable
        layout = executable.kv_layout(block_size, state_interval)
        self.table = RequestTable(SLOTS, MAX_LEN, layout.groups)
        num_blocks = self.table.block_tables.size
        executable.allocate_kv(1 + num_blocks, layout)
        blocks = np.random.default_rng(seed).permutation(np.arange(1, 1 + num_blocks))
        self.table.block_tables.ravel()[:] = blocks
        executable.bind(self.table, {})

    def put(self, slot: int, ids: np.ndarray) -> None:
        ids = np.asarray(ids, np.int32)
        row = NewRow(slot, slot, ids, len(ids), 0, SamplingParams(), [])
        self.table.set_row(row)

    def step(self, work: dict[int, int]) -> np.ndarray:
        """Compute so many tokens of each slot; logits of all of them, rows in order."""
        slots = np.array(list(work), np.int32)
        counts = np.array(list(work.values()), np.int32)
        plan = StepPlan(1, slots, counts, counts, np.zeros(len(slots), np.uint8))
        self.executable.run(plan, sample=False)
        self.table.num_computed[slots] += counts
        return self.executable.logits.copy()


def solo_logits(executable: Executable, ids: np.ndarray, chunks: list[int]) -> np.ndarray:
    """[n, vocab]: one sequence, alone, computed in chunks of these sizes."""
    assert sum(chunks) == len(ids)
    driver = Driver(executable)
    driver.put(3, ids)
    return np.concatenate([driver.step({3: n}) for n in chunks])
