"""`build_core`: the parts of an engine core, wired over an executor."""

from __future__ import annotations

import logging

from galley.batch import RequestTable
from galley.config import EngineConfig
from galley.config.speculative import MOST_DRAFTS
from galley.engine.block_index import BlockIndex
from galley.engine.core import EngineCore
from galley.engine.observers import WorkloadMeter
from galley.engine.outputs import EngineId
from galley.errors import ConfigError
from galley.executor.executor import Executor
from galley.kv import BlockHasher, BlockPool, KVCacheManager, longest_sequence
from galley.observability.meter import BlockLifetimes, Sizes, Workload
from galley.scheduler import Scheduler, SchedulerLimits

log = logging.getLogger(__name__)


def build_core(
    config: EngineConfig,
    executor: Executor,
    engine_id: EngineId | None = None,
    sizes: Sizes | None = None,
    block_index: BlockIndex | None = None,
) -> EngineCore:
    """An engine core over an executor that has loaded its model and sized its KV cache.

    Args:
        config: resolved (`config.resolve`): no limit is None.
        executor: its num_blocks counts the null block.
        sizes: with these the work of each step is estimated.
        block_index: index of a KV cache that outlives its engines.

    Raises:
        ConfigError: limits are contradictory, or the pool is too small for one sequence.
    """
    scheduling, cache = config.scheduler, config.cache
    assert scheduling.max_num_batched_tokens is not None, "the configuration is not resolved"
    assert scheduling.max_num_seqs is not None, "the configuration is not resolved"
    drafts = config.speculative.settings
    limits = SchedulerLimits(
        max_num_batched_tokens=scheduling.max_num_batched_tokens,
        max_num_seqs=scheduling.max_num_seqs,
        max_model_len=executor.max_model_len,
        enable_chunked_prefill=scheduling.enable_chunked_prefill,
        long_prefill_token_threshold=scheduling.long_prefill_token_threshold,
        long_prefill_token_threshold_adaptive=scheduling.long_prefill_token_threshold_adaptive,
        mixed_prefill_tokens=scheduling.mixed_prefill_tokens or 0,
        target_step_seconds=(scheduling.target_itl or 0.0) / 1e3,
        policy=scheduling.scheduling_policy,
        by_client=scheduling.fairness_by != "none",
        max_adapters=config.lora.max_loras,
        lookahead=executor.lookahead,
        max_drafts=executor.max_drafts,
        max_row_drafts=MOST_DRAFTS if drafts is None else drafts.most_drafts,
    )
    table = RequestTable(limits.max_num_seqs, limits.max_model_len, executor.groups)
    hasher = BlockHasher.from_environment(cache.prefix_caching_hash_algo, cache.block_size)
    observing = config.observability
    lifetimes = (
        BlockLifetimes(observing.kv_cache_metrics_sample) if observing.kv_cache_metrics else None
    )
    pool = BlockPool(executor.num_blocks, cache.enable_prefix_caching)
    kv = KVCacheManager(
        table, pool, hasher, cache.enable_prefix_caching, limits.max_num_batched_tokens
    )
    if (most := kv.most_held(limits.max_model_len)) > pool.num_blocks - 1:
        room = longest_sequence(kv.groups, pool.num_blocks - 1, limits.max_model_len)
        raise ConfigError(
            f"The KV cache has {pool.num_blocks - 1} blocks of {kv.block_size} tokens, but one "
            f"sequence of --max-model-len {limits.max_model_len} tokens needs {most}. Lower "
            f"--max-model-len to {room} or raise --kv-cache-memory-bytes.",
            field="max_model_len",
        )
    if cache.enable_prefix_caching and not kv.can_share:
        kinds = ", ".join(sorted({g.kind for g in executor.groups}))
        log.warning("Prefix caching is off: KV groups of this model (%s) cannot be shared.", kinds)
    core = EngineCore(Scheduler(kv, table, limits), executor, engine_id)
    core.scheduler.reports_drafts = observing.per_request_spec_decode_metrics != "none"
    core.recorder.logs = observing.enable_logging_iteration_details
    core.block_lifetimes = lifetimes
    if lifetimes is not None:
        kv.listeners.append(lifetimes)
    if sizes is not None:
        core.observers.append(WorkloadMeter(Workload(sizes, core.counters)))
    if block_index is not None:
        restored = block_index.attach(kv)
        if restored:
            log.info("%d KV blocks of the previous engine are in the cache.", restored)
        core.observers.append(block_index)
    return core
