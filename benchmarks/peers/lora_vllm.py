"""vLLM's part of benchmarks/lora.py: runs in vLLM's environment, writes ADAPTERS/vllm.json.

python lora_vllm.py MODEL ADAPTERS RANK STREAMS TOKENS PAIRS

ADAPTERS has the folders a0, a1, … of which there are 16.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from pathlib import Path

from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

PROMPT_TOKENS = 16


def main() -> None:
    model, folder = sys.argv[1], Path(sys.argv[2])
    rank, streams, tokens, pairs = map(int, sys.argv[3:])
    adapters = [LoRARequest(f"a{i}", i + 1, str(folder / f"a{i}")) for i in range(16)]
    llm = LLM(
        model,
        enable_lora=True,
        max_loras=16,
        max_lora_rank=rank,
        max_num_seqs=streams,
        max_model_len=512,
        skip_tokenizer_init=True,
        enable_prefix_caching=False,
        dtype="bfloat16",
    )
    sides = {
        "base": [None] * streams,
        "16 adapters": [adapters[i % 16] for i in range(streams)],
        "one adapter": [adapters[0]] * streams,
    }
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for pair in range(-1, pairs):
        for name, loras in sides.items():
            count = 4 if pair < 0 else tokens
            rng = random.Random(pair)
            prompts = [
                {"prompt_token_ids": [rng.randrange(5, 40_000) for _ in range(PROMPT_TOKENS)]}
                for _ in range(streams)
            ]
            params = SamplingParams(
                temperature=0, max_tokens=count, ignore_eos=True, detokenize=False
            )
            begin = time.perf_counter()
            outputs = llm.generate(prompts, params, use_tqdm=False, lora_request=loras)
            seconds = time.perf_counter() - begin
            made = sum(len(output.outputs[0].token_ids) for output in outputs)
            if pair >= 0:
                speeds[name].append(made / seconds)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    (folder / "vllm.json").write_text(json.dumps(medians))


if __name__ == "__main__":
    main()
