"""Decoding of 64 streams beside other processes that sleep or wake now and then.

    python -m benchmarks.neighbours [--model FILE] [--rounds 2]

Neighbours: one with 8 GB of memory that sleeps; two that compute for 150 µs a hundred times a
second; two that wake a thousand times a second and do nothing. Prints tokens per second and the
cores that the engine uses, of three loads each.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence

from galley import LLM, SamplingParams

STREAMS, TOKENS = 64, 96
_HOLD = "m = bytearray(8 << 30)\nfor i in range(0, len(m), 4096): m[i] = 1\n"
_UP = "import time\nprint(flush=True)\n"
_COMPUTE = "t = time.perf_counter() + 150e-6\n while time.perf_counter() < t: pass\n"
ASLEEP = f"{_HOLD}{_UP}time.sleep(1e6)"
COMPUTING = f"{_UP}while True:\n {_COMPUTE} time.sleep(0.01)"
WAKING = f"{_UP}while True: time.sleep(0.001)"
NEIGHBOURS: dict[str, Sequence[str]] = {
    "alone": (),
    "8 GB asleep": (ASLEEP,),
    "after these have ended": (),
    "two that compute 1.5 % of the time": (COMPUTING, COMPUTING),
    "two that wake": (WAKING, WAKING),
}


def load(llm: LLM) -> str:
    """Tokens a second, and cores used."""
    params = SamplingParams(max_tokens=TOKENS, ignore_eos=True, temperature=0)
    prompts = [[100 + i] * 16 for i in range(STREAMS)]
    begin, used = time.perf_counter(), time.process_time()
    llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - begin
    cores = (time.process_time() - used) / seconds
    return f"{STREAMS * TOKENS / seconds:,.0f} ({cores:.2f} cores)"


def beside(llm: LLM, programs: Sequence[str]) -> list[str]:
    """Three loads while these programs run."""
    processes = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
        for program in programs
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        return [load(llm) for _ in range(3)]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model")
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    model = {} if given.model is None else {"model": given.model}
    llm = LLM(**model, max_model_len=512, max_num_seqs=STREAMS)
    load(llm)
    for _ in range(given.rounds):
        for name, programs in NEIGHBOURS.items():
            print(f"| {name} | {' | '.join(beside(llm, programs))} |", flush=True)


if __name__ == "__main__":
    main()
