"""CPU time that watching costs: an engine at 64 streams, and the server beside it.

    python -m benchmarks.live_view

Scheduler and KV cache are real, the model is not: a step yields one token a row.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec
import numpy as np

from galley.batch import GroupSpec, StepPlan, StepResult
from galley.config import CacheConfig, EngineConfig, SchedulerConfig
from galley.engine.build import build_core
from galley.request import Request, SamplingParams
from galley.server.live_feed import INTERVAL

STREAMS, BLOCKS, PROMPT, LENGTH = 64, 20_000, 1000, 4096
#: Steps between two looks: those of 20 ms.
STEPS = int(INTERVAL / 0.02)
LOOKS = 40


class OneToken:
    """An executor."""

    batch_invariant = True
    lookahead = max_drafts = 0
    groups = [GroupSpec("full", 16, 64)]
    max_model_len = LENGTH
    num_blocks = 1 + BLOCKS

    def submit(self, plan: StepPlan) -> OneToken:
        self._plan = plan
        return self

    def sample(self, mask: Any = None) -> StepResult:
        counts = self._plan.num_sampled
        return StepResult(self._plan.step, counts, np.full(counts.sum(), 5, np.int32))

    def rpc(self, method: str, *args: Any) -> list[Any]:
        return [None]

    def shutdown(self) -> None:
        pass


def main() -> None:
    config = EngineConfig(
        cache=CacheConfig(block_size=16),
        scheduler=SchedulerConfig(max_num_batched_tokens=8192, max_num_seqs=STREAMS),
    )
    core = build_core(config, OneToken())
    prompt = np.arange(PROMPT, dtype=np.int32).tobytes()
    core.add(
        Request(
            handle=handle,
            request_id=f"cmpl-{handle:032}",
            prompt_token_ids=prompt,
            params=SamplingParams(ignore_eos=True),
            max_total_tokens=LENGTH,
            cache_salt=str(handle % 8),
        )
        for handle in range(3 * STREAMS)
    )
    encode, decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder().decode
    seconds: dict[str, list[float]] = {"engine": [], "server": []}
    for _ in range(LOOKS):
        for _ in range(STEPS):
            core.step()
        begin = time.process_time()
        view = encode(core.live_view(0, max(core.trace.last - STEPS, 0)))
        middle = time.process_time()
        msgspec.json.encode({"engines": [decode(view)]})
        seconds["engine"].append(middle - begin)
        seconds["server"].append(time.process_time() - middle)
    for name, found in seconds.items():
        each = float(np.median(found))
        print(f"{name}: {each * 1e3:.2f} ms of CPU a look, {each / INTERVAL:.2%} of a core")
    print(f"{len(view):,} bytes a look")


if __name__ == "__main__":
    main()
