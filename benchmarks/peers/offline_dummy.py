"""An `LLM` with random weights in bf16, Galley's or vLLM's, as a worker of `families.py`.

    python offline_dummy.py galley|vllm MODEL

Lines as in `offline_openvino.py`.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from typing import Any

_ENGINE, _MODEL = sys.argv[1:]
_library: Any = importlib.import_module(_ENGINE)


def run(llm: Any, prompts: list[list[int]], output: int) -> dict[str, Any]:
    params = _library.SamplingParams(
        temperature=0, max_tokens=output, ignore_eos=True, detokenize=False
    )
    begin = time.perf_counter()
    outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "tokens": sum(len(o.outputs[0].token_ids) for o in outputs)}


def main() -> None:
    llm = _library.LLM(
        _MODEL,
        load_format="dummy",
        dtype="bfloat16",
        skip_tokenizer_init=True,
        enable_prefix_caching=False,
        max_num_seqs=8,
        max_model_len=1024,
        max_num_batched_tokens=1024,
    )
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        print(json.dumps(run(llm, task["prompts"], task["output"])), flush=True)


if __name__ == "__main__":
    main()
