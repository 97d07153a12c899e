"""Sizing the pool: which option wins, what fits, and errors that say what to change."""

from __future__ import annotations

import pytest

from galley.config import CacheConfig
from galley.errors import ConfigError
from galley.kv import CacheSpec, plan_layout
from galley.runner.memory import GIB, KVCapacity, MemoryUse, fit_length, kv_capacity

MEMORY = MemoryUse(available=10 * GIB, weights=2 * GIB, activations=GIB)
BLOCK = 2**20
LAYOUT = plan_layout([CacheSpec("full", token_bytes=BLOCK // 16)], 16)


def test_the_budget_is_the_memory_left_by_weights_and_activations():
    capacity = kv_capacity(CacheConfig(gpu_memory_utilization=0.5), BLOCK, MEMORY)
    assert capacity.num_blocks == 2 * GIB // BLOCK
    assert capacity.flag == "--gpu-memory-utilization"


def test_bytes_win_over_the_share_and_blocks_over_bytes():
    cache = CacheConfig(kv_cache_memory_bytes=100 * BLOCK + 5)
    assert kv_capacity(cache, BLOCK, MEMORY).num_blocks == 100
    cache = CacheConfig(kv_cache_memory_bytes=100 * BLOCK, num_gpu_blocks_override=7)
    capacity = kv_capacity(cache, BLOCK, MEMORY)
    assert (capacity.num_blocks, capacity.flag) == (7, "--num-gpu-blocks-override")


@pytest.mark.parametrize(
    ("cache", "field"),
    [
        (CacheConfig(gpu_memory_utilization=0.3), "gpu_memory_utilization"),
        (CacheConfig(kv_cache_memory_bytes=BLOCK), "kv_cache_memory_bytes"),
    ],
)
def test_no_room_at_all_states_the_numbers_and_the_option(cache, field):
    with pytest.raises(ConfigError) as error:
        kv_capacity(cache, BLOCK, MEMORY)
    assert error.value.field == field
    option = "--" + field.replace("_", "-")
    assert f"Increase {option}" in error.value.message
    parts = "10.00 GiB available, weights 2.00 GiB, activations 1.00 GiB"
    assert (parts in error.value.message) == (field == "gpu_memory_utilization")


def test_a_sequence_that_fits_exactly_is_accepted():
    capacity = KVCapacity(num_blocks=5, budget=0, flag="--num-gpu-blocks-override")
    assert fit_length(64, 8192, capacity, LAYOUT, 64) == 64
    with pytest.raises(ConfigError) as error:
        fit_length(65, 8192, capacity, LAYOUT, 64)
    assert error.value.field == "max_model_len"
    for part in ("65 tokens", "6 blocks of 16", "gives 5,", "enough for 64 tokens"):
        assert part in error.value.message
    assert "Increase --num-gpu-blocks-override, or lower --max-model-len to 64" in (
        error.value.message
    )


def test_minus_one_takes_what_fits_up_to_what_the_model_supports():
    small = KVCapacity(5, 0, "--num-gpu-blocks-override")
    large = KVCapacity(5000, 0, "--num-gpu-blocks-override")
    assert fit_length(-1, 8192, small, LAYOUT, 64) == 64
    assert fit_length(-1, 8192, large, LAYOUT, 64) == 8192
