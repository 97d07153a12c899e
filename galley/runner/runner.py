"""The runner: loads a model, allocates its KV cache, executes plans.

    execute(plan)   table ← plan, block copies, masks; forward, and sampling where nothing has to
                    come between
    sample(mask)    grammar mask and processors, sampling; result; table ← result

One plan at a time. A step whose rows have nothing but numbers is one native call and a fixed
number of Python calls, however many rows it has.
"""

from __future__ import annotations

import dataclasses
import mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from galley.batch import RequestTable, StepPlan, StepResult, drafts_among, max_logit_rows
from galley.config import EngineConfig, ModelInfo
from galley.config.pooling import pooling_settings
from galley.kernels.backend import Executable, MemoryAllocator, StepLimits, kv_layout
from galley.kernels.sampling import LogitMasks
from galley.loader import Checkpoint, open_checkpoint, resolve_source
from galley.models.decoder import Stage
from galley.models.footprint import kv_layers
from galley.models.pooling_heads import HeadSpec, add_sites, head_spec
from galley.request import Failure
from galley.runner.device import dense_format, open_device
from galley.runner.heap import collect_and_trim, trim
from galley.runner.load import LoadedModel, Progress, load_model
from galley.runner.logits_processor import processor_classes
from galley.runner.memory import (
    MemoryUse,
    check_given_size,
    fit_length,
    kv_capacity,
    most_snapshots,
    one_step,
)
from galley.runner.pooling import Pooler
from galley.runner.pooling_head import load_head
from galley.runner.processor_batch import ProcessorBatch
from galley.runner.processors import apply_processors
from galley.runner.prompt_rows import PromptRowSlots
from galley.runner.results import SampledStep, step_result
from galley.runner.sampled_rows import SampledRows, sampled_rows
from galley.runner.sampler import NO_LOGPROBS, MaskRows, SamplingTable
from galley.runner.scores import Scores
from galley.runner.weight_cache import configured_path
from galley.spec.speculator import Speculator

if TYPE_CHECKING:
    from galley.runner.adapters import AdapterSlots

#: Most candidates that the sampling kernel lists per row; more are computed from the logits.
MAX_TOP_LOGPROBS = 32


class _Pending(msgspec.Struct):
    """A plan between `execute` and `sample`.

    Attributes:
        sampled: its logit rows that are sampled.
        ruled: those with masks, biases or processors.
        processed: those whose processors must run between forward pass and sampling.
        done: whether sampling was part of the forward pass.
        masks: masks and biases of the sampling.
        raw: logits [sampled, V] before --logits-processors, where they are asked for.
    """

    plan: StepPlan
    sampled: SampledRows
    ruled: SampledRows
    processed: SampledRows
    done: bool
    masks: LogitMasks | None = None
    raw: NDArray[np.float32] | None = None


class Runner:
    """See the module.

    Args:
        config: resolved.
        available: bytes of memory that could be taken before the model was loaded.
        kv_memory: allocates the KV cache; None = in ordinary memory.
        speculator: proposes drafts after each step; None = no speculation.
        pooling: keep the final hidden states of a step, which requests that pool need; an encoder
            does so anyway.
        adapters: folder of packed adapters (--enable-lora); None = no request has one.

    Attributes:
        layout: of the KV cache; `groups` are its groups.
        num_blocks: blocks of the pool, the null block among them.
        lookahead: tokens behind those of a step for which blocks are needed, if there are any.
        max_drafts: most drafts of a step.
        max_model_len: longest sequence, fitted to the pool where the configuration says -1.
        table: this worker's copy of the scheduler's table.

    Raises:
        ConfigError: the pool is too small, or the backend cannot be had.
        ModelError: the checkpoint is not one that the model can take.
    """

    def __init__(
        self,
        config: EngineConfig,
        model_info: ModelInfo,
        checkpoint: Checkpoint,
        available: int,
        progress: Progress | None = None,
        kv_memory: MemoryAllocator | None = None,
        speculator: Speculator | None = None,
        pooling: bool = False,
        adapters: Path | None = None,
    ) -> None:
        limits = step_limits(config)
        processors = processor_classes(config)  # before the weights: this may raise
        wanted = config.model.max_model_len
        wanted = model_info.max_position if wanted is None else wanted
        longest = model_info.max_position if wanted == -1 else wanted
        self._speculator = speculator
        self._config, self._model_info, self._kv_memory = config, model_info, kv_memory
        self._dense = dense_format(config.model.dtype, model_info.dtype)
        layers = kv_layers(model_info)
        heads = None if speculator is None else speculator.reader
        further = [] if heads is None else heads.caches(layers)
        self._backend = open_device(config, self._dense, model_info, layers)
        assert config.scheduler.max_num_batched_tokens is not None
        max_chunk = config.scheduler.max_num_batched_tokens
        cache = config.cache
        blocks = cache.block_size, cache.state_interval
        layout = kv_layout([*layers, *further], self._backend.kv, *blocks)
        check_given_size(cache, layout, max_chunk, wanted, longest)
        self.max_drafts = limits.logits
        self._rewinds = bool(layout.bytes_per_state)
        if self._rewinds:
            snapshots = most_snapshots(layout.bytes_per_state, available)
            self.max_drafts = 0 if speculator is None else snapshots
        self._stage = Stage(longest)
        self.batch_invariant = self._backend.batch_invariant
        loaded = self._load(checkpoint, progress)
        self._pools = bool(pooling or model_info.is_encoder or model_info.head)
        self._outputs: tuple[str, ...] = ("normed",) if self._pools else ()
        head_bytes = 0
        if heads is not None:
            self._outputs = heads.outputs
            heads.load(self._backend, loaded.model, longest)
            head_bytes = heads.memory
        spec = HeadSpec()
        if self._pools:
            spec = head_spec(model_info, pooling_settings(config.model, model_info))
        sites = add_sites(spec, loaded.sites)
        self._adapters: AdapterSlots | None = None
        adapter_bytes = 0
        if config.lora.enable_lora and adapters is not None:
            from galley.runner.adapters import AdapterSlots, adapter_limits

            shape, most = loaded.sites.shape, adapter_limits(config.lora, self._dense)
            self._adapters = AdapterSlots(shape, most, adapters, limits.rows)
            adapter_bytes = most.num_bytes(loaded.sites)
        self._awake: Executable | None = self._build(loaded)
        self.layout = kv_layout([*loaded.model.kv_layers, *further], self._backend.kv, *blocks)
        self._memory = MemoryUse(
            available,
            loaded.weight_bytes + head_bytes,
            self._executable.activation_bytes,
            adapter_bytes,
        )
        self._capacity = kv_capacity(cache, self.layout.block_bytes, self._memory)
        if model_info.is_encoder:
            self._capacity = one_step(self._capacity, self.layout, limits.tokens, limits.rows)
        self.num_blocks = self._capacity.num_blocks
        self.lookahead = 0 if heads is None else heads.lookahead
        self.max_model_len = fit_length(wanted, longest, self._capacity, self.layout, max_chunk)
        self.groups = self.layout.groups
        self.table = RequestTable(limits.rows, self.max_model_len, self.groups)
        self._sampling = SamplingTable(limits.rows, loaded.model.vocab_size, limits.top_logprobs)
        head = load_head(spec, checkpoint, sites) if spec != HeadSpec() else None
        self._pooler = Pooler(head)
        self._prompt_rows: PromptRowSlots | None = None
        if config.model.enable_prompt_embeds:
            self._prompt_rows = PromptRowSlots(limits.rows, self.max_model_len)
        self._batch: ProcessorBatch | None = None
        if processors:
            self._batch = ProcessorBatch([each.create(config) for each in processors])
        self._masked = False
        self._pending: _Pending | None = None
        self._heartbeat: NDArray[np.int64] | None = None
        self._make_room()

    @property
    def _executable(self) -> Executable:
        assert self._awake is not None, "the model's memory has been released"
        return self._awake

    def _load(self, checkpoint: Checkpoint, progress: Progress | None = None) -> LoadedModel:
        load = self._config.load
        loaded = load_model(
            self._model_info,
            checkpoint,
            self._backend,
            self._stage,
            configured_path(self._model_info, self._backend, self._dense, load),
            progress,
            cache_size=load.weight_cache_size,
            threads=self._config.device.num_threads or 1,
        )
        if not loaded.from_cache:
            trim()  # the allocator keeps what packing has freed
        return loaded

    def _build(self, loaded: LoadedModel) -> Executable:
        table = None if self._adapters is None else self._adapters.table
        limits = step_limits(self._config)
        if self._rewinds:
            limits = msgspec.structs.replace(limits, drafts=self.max_drafts)
        given = self._config.model.enable_prompt_embeds
        return self._backend.build(loaded.model, limits, self._outputs, table, given)

    def _make_room(self) -> None:
        """The KV cache; its memory is taken as it is written."""
        self._executable.allocate_kv(self.num_blocks, self.layout, self._kv_memory)
        columns: dict[str, NDArray[Any]] = dict(self._sampling.columns)
        if self._adapters is not None:
            columns["adapter"] = self._adapters.column
        if self._prompt_rows is not None:
            columns |= self._prompt_rows.columns
        self._executable.bind(self.table, columns)
        if self._speculator is not None and self._speculator.reader is not None:
            self._speculator.reader.attach(
                self._executable, self.table, self._sampling.columns, self.layout
            )
        if self._heartbeat is not None:
            self._executable.set_heartbeat(self._heartbeat)

    def execute(self, plan: StepPlan) -> None:
        """Apply the plan to the table and run the forward pass."""
        assert self._pending is None, "the step before has not been sampled"
        if self._speculator is not None:
            self._speculator.apply_plan(plan, self.table)
        self.table.apply_plan(plan)
        for slot in plan.freed_slots.tolist():
            self._clear(slot)
        for row in plan.new_rows:
            self._sampling.set_row(row)
            self._pooler.set_row(row)
            if self._adapters is not None:
                self._adapters.set_row(row)
            if self._prompt_rows is not None:
                self._prompt_rows.set_row(row)
            if self._batch is not None:
                self._batch.set_row(row)
        if len(plan.copy_src):
            self._executable.copy_blocks(plan.copy_src, plan.copy_dst)
        sampled = sampled_rows(plan, self.table)
        ruled = self._sampling.ruled(sampled)
        processed = self._sampling.processed(ruled)
        between = len(sampled) if self._batch is not None else len(processed)
        done = not between and not len(plan.masked_logits)
        self._pending = _Pending(plan, sampled, ruled, processed, done)
        if done:
            self._set_masks(self._pending, None)
        adapted = self._adapters is not None and self._adapters.any_of(plan.slots)
        greedy = done and len(sampled) == int(plan.num_logits.sum())
        greedy = greedy and bool(self._sampling.greedy[plan.slots].all())
        self._executable.run(plan, sample=done, adapted=adapted, greedy=greedy)

    def _clear(self, slot: int) -> None:
        self._sampling.clear(slot)
        self._pooler.clear(slot)
        if self._adapters is not None:
            self._adapters.clear(slot)
        if self._prompt_rows is not None:
            self._prompt_rows.clear(slot)
        if self._batch is not None:
            self._batch.clear(slot)

    def sample(self, mask: MaskRows | None = None) -> StepResult:
        """The result of the plan that was executed last.

        Args:
            mask: uint64 [masked logit rows, ceil(V / 64)], bit t % 64 of word t / 64 = token t is
                allowed; for the plan's `masked_logits`, in order. Tokens that a row's own rules
                exclude are removed from it.
        """
        assert self._pending is not None, "nothing was executed"
        pending, self._pending = self._pending, None
        plan, executable = pending.plan, self._executable
        failed: dict[int, str] = {}
        if not pending.done:
            failed = self._process(pending)
            self._set_masks(pending, mask)
            executable.sample(plan)
            if pending.raw is not None:
                executable.logits[pending.sampled.logit_rows] = pending.raw
        step = SampledStep(
            plan,
            pending.sampled,
            executable.samples,
            executable.logits,
            failed,
            self._scores(pending),
            pending.masks,
        )
        result = step_result(step, self.table, self._sampling)
        if len(self._pooler):
            self._pool(plan, result)
        if self._adapters is not None and self._adapters.errors:
            result.errors |= self._adapters.errors
        if self._rewinds and len(plan.draft_ids):
            num_kept = drafts_among(result.num_sampled)
            if (num_kept < plan.num_drafts).any():
                executable.rewind(plan, num_kept)
        if self._speculator is not None:
            self._speculator.stepped(plan)
        self.table.apply_result(plan, result)
        if self._speculator is not None:
            self._propose(self._speculator, plan, result)
        return result

    def _process(self, pending: _Pending) -> dict[int, str]:
        """Run the processors of the engine, then those of requests; row → why it failed."""
        logits, sampled, failed = self._executable.logits, pending.sampled, {}
        if self._batch is not None:
            asked = self._sampling.columns["num_logprobs"][sampled.slots] > NO_LOGPROBS
            if asked.any() and self._config.model.logprobs_mode.startswith("raw"):
                pending.raw = logits[sampled.logit_rows]
            temperature = self._sampling.columns["temperature"]
            failed = self._batch.apply(sampled, self.table, temperature, logits)
        return failed | apply_processors(pending.processed, self.table, self._sampling, logits)

    def _pool(self, plan: StepPlan, result: StepResult) -> None:
        if self._pools:
            hidden = self._executable.outputs["normed"]
            adapters = self._adapters
            adapter_of = (lambda slot: None) if adapters is None else adapters.adapter_of
            result.pooled = self._pooler.pool(plan, self.table, hidden, adapter_of)
            return
        for slot in self._pooler.slots & set(plan.slots.tolist()):
            result.errors[slot] = Failure("this engine was not started for pooling")

    def _propose(self, speculator: Speculator, plan: StepPlan, result: StepResult) -> None:
        """Add drafts for the next step; not for rows whose processors would see them."""
        eligible = result.num_sampled > 0
        if self._sampling.rules:
            eligible &= ~self._sampling.has_processors[plan.slots]
        result.drafts_indptr, result.drafts_ids = speculator.propose(self.table, plan, eligible)

    def reset(self) -> None:
        """Drop all requests: every slot is empty, as at the start."""
        self._pending = None
        for slot in range(self.table.num_slots):
            self.table.clear_slot(slot)
            self._clear(slot)

    def set_heartbeat(self, path: str) -> None:
        """Count up the int64 at the start of a file as steps get on; it is watched from outside."""
        with open(path, "r+b") as f:
            self._heartbeat = np.frombuffer(mmap.mmap(f.fileno(), 8), np.int64)
        self._executable.set_heartbeat(self._heartbeat)

    def release_memory(self, weights: bool) -> None:
        """Give the memory of the KV cache back, whose content is lost, and with `weights` that of
        the model and of its steps: then nothing runs until `restore_memory`.
        """
        assert self._pending is None, "a step is under way"
        if self._awake is not None:
            self._awake.release_blocks(list(range(self.num_blocks)))
        if weights:
            self._awake = None
            collect_and_trim()

    def restore_memory(self) -> None:
        """Load the model again after `release_memory`, from where it came from."""
        if self._awake is not None:
            return
        model = dataclasses.replace(self._config.model, model=self._model_info.source)
        checkpoint = open_checkpoint(resolve_source(model, self._config.load))
        loaded = self._load(checkpoint)
        self._awake = self._build(loaded)
        self._masked = False
        self._make_room()

    def release_blocks(self, blocks: list[int]) -> None:
        """Return the memory of KV blocks whose contents are not needed."""
        self._executable.release_blocks(blocks)

    def profile(self, on: bool) -> None:
        """Start (from zero) or stop timing each operation; nothing where nothing is loaded."""
        if self._awake is not None:
            self._awake.profile(on)

    def timings(self) -> list[tuple[str, int, int]]:
        """(operation, runs, nanoseconds) of each operation since `profile(True)`."""
        return [] if self._awake is None else self._awake.timings()

    def describe(self) -> str:
        """The operations of a step, one a line."""
        return "" if self._awake is None else self._awake.describe()

    def memory(self) -> dict[str, int]:
        """Bytes: available, weights, activations, adapters, kv_cache."""
        use = self._memory
        return {
            "available": use.available,
            "weights": use.weights,
            "activations": use.activations,
            "adapters": use.adapters,
            "kv_cache": self.num_blocks * self.layout.block_bytes,
        }

    def _set_masks(self, pending: _Pending, grammar: MaskRows | None) -> None:
        masks = self._sampling.logit_masks(pending.plan, pending.ruled, self.table, grammar)
        if masks is not None or self._masked:
            self._executable.set_masks(masks)
        self._masked = masks is not None
        pending.masks = masks

    def _scores(self, pending: _Pending) -> Scores | None:
        mode = self._config.model.logprobs_mode
        if mode == "raw_logprobs" and pending.raw is None:
            return None
        columns = self._sampling.columns
        return Scores(mode, self._executable.logits, self.table, columns, pending.masks)


def step_limits(config: EngineConfig) -> StepLimits:
    """The most that a step holds, of a resolved configuration."""
    tokens, rows = config.scheduler.max_num_batched_tokens, config.scheduler.max_num_seqs
    assert tokens is not None, "the configuration is not resolved"
    assert rows is not None, "the configuration is not resolved"
    listed = config.model.max_logprobs
    if config.model.runner == "pooling":  # no row yields logits
        return StepLimits(tokens=max(tokens, rows), rows=rows, logits=1, top_logprobs=0)
    return StepLimits(
        tokens=max(tokens, rows),
        rows=rows,
        logits=max_logit_rows(rows),
        top_logprobs=MAX_TOP_LOGPROBS if listed == -1 else min(listed, MAX_TOP_LOGPROBS),
    )
