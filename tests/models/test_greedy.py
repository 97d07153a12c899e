"""The reference backend from a folder on disk to tokens: greedy outputs equal transformers'."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from galley import LLM, SamplingParams
from tests.models.checkpoints import CASES, SIZES, make

NEW = 16


def prompts(count: int = 20) -> list[list[int]]:
    rng = np.random.default_rng(2)
    return [rng.integers(3, SIZES["vocab_size"], n).tolist() for n in range(1, 2 * count, 2)]


@pytest.mark.parametrize("name", ["llama-biases", "qwen2-windows"])
def test_greedy_tokens_of_twenty_prompts(name: str, tmp_path: Path) -> None:
    model = make(CASES[name])
    model.save_pretrained(tmp_path)
    greedy = SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True)
    small = {"max_model_len": 64, "max_num_batched_tokens": 64, "max_num_seqs": 8}
    flags = {"backend": "reference", "dtype": "float32", "kv_cache_memory_bytes": "8m", **small}
    with LLM(str(tmp_path), skip_tokenizer_init=True, **flags) as llm:
        outputs = llm.generate(prompts(), greedy, use_tqdm=False)
    for prompt, output in zip(prompts(), outputs, strict=True):
        # Each token is the most likely one after those before it: so would greedy search have it.
        ids = [*prompt, *output.outputs[0].token_ids]
        with torch.inference_mode():
            wanted = model(torch.tensor([ids[:-1]])).logits[0, len(prompt) - 1 :].argmax(-1)
        assert output.outputs[0].token_ids == wanted.tolist()
