"""KV caches of eight-bit numbers: answers are the same in any batch, chunks and from the cache."""

from __future__ import annotations

from typing import Any

import pytest

from galley import LLM
from tests.equality.test_windows import CASES, open_llm, requests, run
from tests.equality.workload import answer
from tests.models.checkpoints import make

FORMATS: list[dict[str, Any]] = [
    {"kv_cache_dtype": "fp8"},
    {"kv_cache_dtype": "fp8_e5m2", "calculate_kv_scales": True},
    {"kv_cache_dtype": "int8_per_token_head"},
    {"kv_cache_dtype": "int8_per_token_head", "dtype": "float32"},
    {"kv_cache_dtype": "fp8", "kv_cache_dtype_skip_layers": ["1", "sliding_window"]},
    {"kv_cache_dtype": "fp8_per_token_head", "kv_cache_dtype_skip_layers": ["4"]},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("windows")
    make(CASES["interleaved"]).save_pretrained(path)
    return str(path)


def blocks(llm: LLM) -> int:
    return llm._core.executor.groups[0].block_bytes


@pytest.mark.parametrize("flags", FORMATS, ids=lambda flags: "-".join(map(str, flags.values())))
def test_company_chunks_and_cached_prefixes(folder: str, flags: dict[str, Any]) -> None:
    with open_llm(folder, enable_prefix_caching=False, **flags) as llm:
        alone = [
            answer(llm.generate([prompt], [params], use_tqdm=False)[0])
            for prompt, params in zip(*requests(), strict=True)
        ]
        small = blocks(llm)
    with open_llm(folder, max_num_batched_tokens=33, **flags) as llm:
        assert run(llm) == alone
        assert run(llm) == alone  # from cached blocks
        assert llm._core.counters.prefix_hits > 100
    with open_llm(folder, dtype=flags.get("dtype", "bfloat16")) as llm:
        assert run(llm) != alone
        if len(flags) > 1 and "calculate_kv_scales" not in flags:
            return
        # Of 16 numbers a head: 16 bytes and perhaps a scale of 4, instead of 32.
        assert blocks(llm) * (16 if flags["kv_cache_dtype"] == "fp8" else 20) == small * 32
