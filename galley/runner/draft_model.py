"""draft_model: a smaller model guesses the tokens that the model will sample.

It is loaded like any model, of any format, and has a program, a KV cache and a pool of blocks of
its own. At each step it computes the tokens that came since, and then one draft after another. It
samples with the request's own parameters and random numbers, which depend on seed and position
alone: where its distribution is like the model's, it guesses the same token at any temperature.

Drafts are written to its cache as they are computed. What turns out wrong is computed again.

A drafter whose config names a mask token (`pard_token`) gives all drafts in one pass: masks stand
for the drafts, and each predicts the one behind it. Source: PARD (arXiv 2504.18583).

    tokens    x     x     mask  mask
    samples         d 1   d 2   d 3
"""

from __future__ import annotations

import dataclasses

import msgspec
import numpy as np
from numpy.typing import NDArray

from galley.batch import I32, NewRow, RequestTable, StepPlan
from galley.config import ModelInfo
from galley.config.speculative import SpeculativeSettings
from galley.errors import ConfigError
from galley.kernels.backend import Executable, StepLimits
from galley.loader import open_checkpoint, resolve_source
from galley.loader.fields import Fields
from galley.models.decoder import Stage
from galley.models.footprint import kv_layers
from galley.request import SamplingParams
from galley.runner.device import dense_format, open_device
from galley.runner.load import load_model
from galley.runner.sampler import SamplingTable
from galley.runner.weight_cache import configured_path
from galley.spec.proposer import Drafts, Target

#: Drafts of a sequence and step without num_speculative_tokens: each costs a pass of the drafter.
DEFAULT_DRAFTS = 4
#: The same of a drafter that computes all of them in one pass.
DEFAULT_PARALLEL_DRAFTS = 8
#: Memory of the drafter's KV cache, as a fraction of what the engine may use.
KV_SHARE = 0.1
_BLOCK = 16


class _Columns(msgspec.Struct):
    """`kernels.backend.StepInputs`."""

    slots: I32
    num_new: I32
    num_logits: I32
    num_sampled: I32


class DraftModel:
    """See the module.

    Args:
        limits: slots, and tokens of a sequence.
        num_blocks: of its KV cache.
        chunk: most tokens that it computes in a pass; at least `most_logits`.
        most_logits: most tokens that it samples in a pass; at least slots, and width.
        weight_bytes: of the weights.
        mask: token that stands for a draft; None: it gives one draft after another.

    Attributes:
        memory: bytes that it takes.
    """

    is_free = False

    def __init__(
        self,
        executable: Executable,
        vocab_size: int,
        width: int,
        limits: tuple[int, int],
        num_blocks: int,
        chunk: int,
        most_logits: int,
        weight_bytes: int = 0,
        mask: int | None = None,
    ) -> None:
        num_slots, max_len = limits
        layout = executable.kv_layout(_BLOCK)
        self.width = width
        self.memory = weight_bytes + num_blocks * layout.block_bytes
        self._executable, self._chunk = executable, chunk
        self._most_logits, self._mask = most_logits, mask
        self._table = RequestTable(num_slots, max_len + width, layout.groups)
        self._sampling = SamplingTable(num_slots, vocab_size, 0)
        self._free = list(range(num_blocks - 1, 0, -1))
        executable.allocate_kv(num_blocks, layout)
        executable.bind(self._table, self._sampling.columns)

    def enter(self, row: NewRow) -> None:
        if isinstance(row.params, SamplingParams):
            plain = msgspec.structs.replace(row.params, logprobs=None, prompt_logprobs=None)
            self._sampling.set_row(msgspec.structs.replace(row, params=plain))

    def leave(self, table: RequestTable, slots: NDArray[np.intp]) -> None:
        for slot in slots.tolist():
            held = int(self._table.num_blocks[0, slot])
            self._free += self._table.block_tables[0, slot, :held].tolist()
            self._table.clear_slot(slot)
            self._sampling.clear(slot)

    def stepped(self, plan: StepPlan) -> None:
        pass

    def propose(self, table: RequestTable, slots: NDArray[np.intp], most: I32) -> Drafts:
        counts: I32 = np.zeros(len(slots), np.int32)
        ids: I32 = np.zeros((len(slots), self.width), np.int32)
        asked = [i for i in np.flatnonzero(most).tolist() if self._follow(table, int(slots[i]))]
        if asked and self._mask is not None:
            ids[asked] = self._in_parallel(slots[asked], self._mask)
            counts[asked] = np.logical_and.accumulate(ids[asked] >= 0, axis=1).sum(1)
        elif asked:
            rows, own = slots[asked], self._table
            self._catch_up(rows)
            for place in range(int(most[asked].max())):
                sampled = self._run(rows)
                if (sampled < 0).any():
                    break
                ids[asked, place] = sampled
                counts[asked] = place + 1
                own.token_ids[rows, own.num_tokens[rows]] = sampled
                own.num_tokens[rows] += 1
        return Drafts(np.minimum(counts, most), ids, np.ones_like(counts))

    def _in_parallel(self, rows: NDArray[np.intp], mask: int) -> I32:
        """All drafts of rows, [n, width]: those of a row are computed in one pass."""
        own, masks = self._table, self.width - 1
        ids: I32 = np.empty((len(rows), self.width), np.int32)
        together = self._most_logits // self.width
        for start in range(0, len(rows), together):
            part = rows[start : start + together]
            self._catch_up(part, masks * len(part))
            for slot in part.tolist():
                end = int(own.num_tokens[slot])
                own.token_ids[slot, end : end + masks] = mask
            left = own.num_tokens[part] - own.num_computed[part]
            self._compute(part, left + masks, sampled=self.width)
            own.num_computed[part] -= masks
            sampled = self._executable.samples.token_ids[: len(part) * self.width]
            ids[start : start + together] = sampled.reshape(-1, self.width)
        return ids

    def _follow(self, table: RequestTable, slot: int) -> bool:
        """Take over a sequence's tokens. False if there are no blocks for them."""
        own, length = self._table, int(table.num_tokens[slot])
        known = min(int(own.num_tokens[slot]), length)
        first = max(int(own.num_computed[slot]) - self.width - 1, 0)
        wrong = np.flatnonzero(
            own.token_ids[slot, first:known] != table.token_ids[slot, first:known]
        )
        same = first + int(wrong[0]) if len(wrong) else known
        own.token_ids[slot, same:length] = table.token_ids[slot, same:length]
        own.num_tokens[slot], own.num_prompt[slot] = length, table.num_prompt[slot]
        # The last token is computed again, for the logits behind it.
        own.num_computed[slot] = min(int(own.num_computed[slot]), same, length - 1)
        held = int(own.num_blocks[0, slot])
        more = -(-(length + self.width) // _BLOCK) - held
        if more > len(self._free):
            return False
        for index in range(held, held + more):
            own.block_tables[:, slot, index] = self._free.pop()
        own.num_blocks[:, slot] = held + max(more, 0)
        return True

    def _catch_up(self, rows: NDArray[np.intp], masks: int = 0) -> None:
        """Compute tokens of rows until what is left of all fits one pass, beside so many masks."""
        own = self._table
        while True:
            left = own.num_tokens[rows] - own.num_computed[rows]
            if left.sum() + masks <= self._chunk:
                return
            before = np.cumsum(left - 1) - (left - 1)
            parts = np.clip(self._chunk - before, 0, left - 1).astype(np.int32)
            some = parts > 0
            self._compute(rows[some], parts[some], sampled=0)

    def _run(self, rows: NDArray[np.intp]) -> I32:
        """Compute what is left of rows, and sample what follows."""
        left = self._table.num_tokens[rows] - self._table.num_computed[rows]
        self._compute(rows, left, sampled=1)
        return np.array(self._executable.samples.token_ids[: len(rows)], np.int32)

    def _compute(self, rows: NDArray[np.intp], num_new: I32, sampled: int) -> None:
        counts = np.full(len(rows), sampled, np.int32)
        columns = _Columns(rows.astype(np.int32), num_new, counts, counts)
        self._executable.run(columns, sample=bool(sampled))
        self._table.num_computed[rows] += num_new


def make(settings: SpeculativeSettings, target: Target) -> DraftModel:
    """Load the drafter.

    Raises:
        ConfigError: its vocabulary is not the model's, or it cannot discard tokens.
        ModelError: its checkpoint cannot be found or used.
    """
    config = target.config
    model = dataclasses.replace(
        config.model,
        model=settings.model or "",
        tokenizer=None,
        quantization=None,
        hf_overrides={},
        hf_config_path=None,
        revision=settings.revision,
    )
    source = resolve_source(model, config.load)
    checkpoint = open_checkpoint(source)
    info = checkpoint.model_info
    if info.vocab_size != target.model_info.vocab_size:
        raise ConfigError(
            f"--speculative-config.model {settings.model}: its vocabulary has {info.vocab_size} "
            f"tokens, the model's {target.model_info.vocab_size}; both must be the same.",
            field="speculative_config",
        )
    longest = config.model.max_model_len or target.model_info.max_position
    longest = target.model_info.max_position if longest == -1 else longest
    dense = dense_format(model.dtype, info.dtype)
    cache = dataclasses.replace(config.cache, kv_cache_dtype_skip_layers=())  # the model's own
    own = dataclasses.replace(config, cache=cache)
    backend = open_device(own, dense, info, kv_layers(info))
    loaded = load_model(
        info,
        checkpoint,
        backend,
        Stage(max(longest, info.max_position)),
        configured_path(info, backend, dense, config.load),
        cache_size=config.load.weight_cache_size,
        threads=config.device.num_threads or 1,
    )
    mask = _mask_of(settings, info)
    default = DEFAULT_DRAFTS if mask is None else DEFAULT_PARALLEL_DRAFTS
    width = settings.num_speculative_tokens or default
    slots = target.num_slots
    logits = slots if mask is None else max(slots, width)
    tokens = max(config.scheduler.max_num_batched_tokens or 0, logits)
    executable = backend.build(loaded.model, StepLimits(tokens, slots, logits))
    layout = executable.kv_layout(_BLOCK)
    if len(layout.groups) != 1 or layout.bytes_per_state:
        raise ConfigError(
            f"--speculative-config.model {settings.model}: a draft model has full attention in all "
            "of its layers in this version.",
            field="speculative_config",
        )
    room = int(target.available * KV_SHARE) // layout.block_bytes
    wanted = slots * -(-(longest + width) // _BLOCK)
    num_blocks = 1 + max(min(room, wanted), -(-(longest + width) // _BLOCK))
    return DraftModel(
        executable,
        info.vocab_size,
        width,
        (slots, longest),
        num_blocks,
        tokens,
        logits,
        loaded.weight_bytes,
        mask,
    )


def _mask_of(settings: SpeculativeSettings, info: ModelInfo) -> int | None:
    """The token that stands for a draft, where all are to be computed in one pass.

    Raises ConfigError where the drafter has none, ModelError where it is no token.
    """
    if settings.parallel_drafting is False:
        return None
    fields = Fields(info.hf_config, f"the config of {settings.model}")
    if not fields.has("pard_token"):
        if settings.parallel_drafting:
            raise ConfigError(
                f"--speculative-config.parallel_drafting: {settings.model} has no pard_token in "
                "its config.json, the token that stands for a draft.",
                field="speculative_config",
            )
        return None
    return fields.integer("pard_token", least=0, most=info.vocab_size - 1)
