"""Sizes the KV block pool and the longest sequence that fits in it.

Pure arithmetic; nothing is allocated here.
"""

from __future__ import annotations

import msgspec

from galley.config import CacheConfig
from galley.errors import ConfigError
from galley.kv import KVLayout, longest_sequence, make_policies
from galley.kv.capacity import most_held

GIB = 2**30
#: Block 0 of the pool is the null block: zeros, never allocated.
NULL_BLOCKS = 1
#: Snapshots of recurrent states, one for each draft of a step: the most, and the most memory that
#: they take, as a fraction of what the engine may use.
_MOST_SNAPSHOTS, _SNAPSHOT_SHARE = 64, 0.05


class MemoryUse(msgspec.Struct, frozen=True):
    """Bytes of memory before the KV cache is allocated.

    Attributes:
        available: memory that was free when the engine started, before the weights were loaded.
        weights: the model.
        activations: buffers of a step at its limits, and the request table.
        adapters: those that may be in memory at once (--max-cpu-loras), at their largest rank.
    """

    available: int
    weights: int
    activations: int
    adapters: int = 0


class KVCapacity(msgspec.Struct, frozen=True):
    """The pool's size, and the option that set it.

    Attributes:
        num_blocks: blocks of the pool, including the null block.
        budget: bytes for the cache; 0 if the number of blocks was set directly.
        flag: the option that a user would change.
    """

    num_blocks: int
    budget: int
    flag: str


def kv_capacity(cache: CacheConfig, block_bytes: int, memory: MemoryUse) -> KVCapacity:
    """Size of the block pool, by the first of --num-gpu-blocks-override, --kv-cache-memory-bytes
    and --gpu-memory-utilization that is given.

    Raises:
        ConfigError: there is no room for a single block besides the null block.
    """
    if cache.num_gpu_blocks_override is not None:
        return KVCapacity(cache.num_gpu_blocks_override, 0, "--num-gpu-blocks-override")
    if cache.kv_cache_memory_bytes is not None:
        budget, flag = cache.kv_cache_memory_bytes, "--kv-cache-memory-bytes"
    else:
        share = int(memory.available * cache.gpu_memory_utilization)
        budget, flag = share - memory.weights - memory.activations, "--gpu-memory-utilization"
        budget -= memory.adapters
    num_blocks = max(budget, 0) // block_bytes
    if num_blocks <= NULL_BLOCKS:
        of = (
            f" ({memory.available / GIB:.2f} GiB available, weights {memory.weights / GIB:.2f} "
            f"GiB, activations {memory.activations / GIB:.2f} GiB{_adapters(memory)})"
        )
        raise ConfigError(
            f"no memory is left for the KV cache: {flag} leaves it {budget / GIB:.2f} GiB"
            f"{of if cache.kv_cache_memory_bytes is None else ''} and two blocks take "
            f"{2 * block_bytes / GIB:.4f} GiB. Increase {flag}.",
            field=flag.lstrip("-").replace("-", "_"),
        )
    return KVCapacity(num_blocks, budget, flag)


def most_snapshots(state_bytes: int, available: int) -> int:
    """Snapshots of a state of so many bytes, at least one."""
    return max(min(int(available * _SNAPSHOT_SHARE) // state_bytes, _MOST_SNAPSHOTS), 1)


def one_step(capacity: KVCapacity, layout: KVLayout, tokens: int, rows: int) -> KVCapacity:
    """The pool of an encoder, whose sequences hold blocks for one step alone: enough for a step of
    so many tokens and rows, and for the next one, which is made before the first has ended.
    """
    blocks = 2 * len(layout.groups) * (-(-tokens // layout.block_size) + rows) + NULL_BLOCKS
    return msgspec.structs.replace(capacity, num_blocks=min(capacity.num_blocks, blocks))


def _adapters(memory: MemoryUse) -> str:
    return f", adapters {memory.adapters / GIB:.2f} GiB" if memory.adapters else ""


def check_given_size(
    cache: CacheConfig, layout: KVLayout, max_chunk: int, wanted: int, longest: int
) -> None:
    """Check before anything is loaded that one sequence fits, if the cache's size is given in
    bytes or blocks. If it depends on the memory that the weights leave, nothing is checked.

    Args:
        layout, max_chunk, wanted, longest: as for `fit_length`.

    Raises:
        ConfigError: one sequence will not fit.
    """
    if cache.num_gpu_blocks_override is None and cache.kv_cache_memory_bytes is None:
        return
    capacity = kv_capacity(cache, layout.block_bytes, MemoryUse(0, 0, 0))
    fit_length(wanted, longest, capacity, layout, max_chunk)


def fit_length(
    wanted: int, longest: int, capacity: KVCapacity, layout: KVLayout, max_chunk: int
) -> int:
    """The longest sequence to accept, in tokens.

    Args:
        wanted: --max-model-len, or -1 for as much as fits.
        longest: what the model supports.
        layout: of the model's KV cache.
        max_chunk: most tokens that one sequence computes in a step.

    Raises:
        ConfigError: the pool cannot hold one sequence of the wanted length.
    """
    groups = make_policies(layout.groups, max_chunk)
    limit = longest if wanted == -1 else wanted
    fits = longest_sequence(groups, capacity.num_blocks - NULL_BLOCKS, limit)
    if fits and wanted in (-1, fits):
        return fits
    wanted = max(wanted, 1)
    blocks = most_held(groups, wanted) + NULL_BLOCKS
    given = f" ({capacity.budget / GIB:.2f} GiB)" if capacity.budget else ""
    raise ConfigError(
        f"one sequence of --max-model-len {wanted} tokens needs a KV cache of {blocks} blocks of "
        f"{layout.block_size} tokens, but {capacity.flag} gives {capacity.num_blocks}{given}, "
        f"enough for {fits} tokens. Increase {capacity.flag}, or lower --max-model-len to {fits} "
        "(or -1: as long as fits).",
        field="max_model_len",
    )
