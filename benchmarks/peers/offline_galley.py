"""Galley's `LLM` without HTTP, as a worker of `offline.py`; lines as in `offline_openvino.py`."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from galley import LLM, SamplingParams


def run(llm: LLM, prompts: list[list[int]], output: int, concurrency: int) -> dict[str, Any]:
    """Generate for all prompts; `max_num_seqs` limits the concurrency."""
    params = SamplingParams(temperature=0, max_tokens=output, ignore_eos=True)
    begin = time.perf_counter()
    size = concurrency if concurrency == 1 else len(prompts)
    outputs = []
    for first in range(0, len(prompts), size):
        outputs += llm.generate(prompts[first : first + size], params, use_tqdm=False)
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "tokens": sum(len(o.outputs[0].token_ids) for o in outputs)}


def main() -> None:
    llm = LLM(sys.argv[1], max_num_seqs=64, max_model_len=4096, max_num_batched_tokens=2048)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(run(llm, **json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
