"""How evenly the thread pool would load many cores: a simulation of its tiles.

    python -m benchmarks.many_cores [--models 1B,3B]

For the linear layers and the attention of a step, tiles are counted as the kernels cut them, and
threads claim them as those of csrc/pool.cpp do: a quarter of the own range at a time, then from the
far ends of others' ranges. A tile takes as long as its share of the op's work. Prints the share of
the threads' time in which they compute, and the same with one core at half speed. The caches, the
bandwidth of the memory and the start of an op are left out.
"""

from __future__ import annotations

import argparse
import heapq
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.planning import engine_flags
from galley.kernels.program import Node
from galley.planning.program import planned_model

#: As in csrc/linear.h, csrc/linear.cpp and csrc/attention_plan.cpp.
PANEL, CHUNK_ROWS, STREAM_ROWS, STREAM_BYTES, KV_CHUNK = 32, 240, 8, 1 << 20, 512
THREADS = (2, 8, 16, 32, 64)
#: Shapes that are computed: rows, new tokens of each, tokens before them.
STEPS = {"1 row": (1, 1, 1023), "64 rows": (64, 1, 1023), "a prompt of 512": (1, 512, 0)}
QUERIES = 16


def makespan(tiles: Sequence[float], grain: int, speeds: Sequence[float]) -> float:
    """Time until all tiles are done; a speed of 1 does one unit of work in one of time."""
    n = len(speeds)
    ranges = [[t * len(tiles) // n, (t + 1) * len(tiles) // n] for t in range(n)]
    free = [(0.0, t) for t in range(n)]
    end = 0.0
    while free:
        now, thread = heapq.heappop(free)
        for other in range(n):
            first, last = ranges[(thread + other) % n]
            if first < last:
                break
        else:
            continue
        take = min(last - first, max(grain, (last - first) // 4))
        if other:
            last -= take
            mine = tiles[last : last + take]
        else:
            first += take
            mine = tiles[first - take : first]
        ranges[(thread + other) % n] = [first, last]
        now += sum(mine) / speeds[thread]
        end = max(end, now)
        heapq.heappush(free, (now, thread))
    return end


def tiles_of(
    node: Node, rows: int, new: int, before: int, threads: int
) -> tuple[list[float], int] | None:
    """Work of each tile, in multiply-adds, and the fewest that are claimed at a time."""
    tokens = rows * new
    if node.op == "linear":
        n, k = node.constants["weight"].shape
        count = -(-n // PANEL) * -(-tokens // CHUNK_ROWS)
        grain = STREAM_BYTES // (PANEL * k * 2) if tokens <= STREAM_ROWS else 1
        return [n * k * tokens / count] * count, max(grain, 1)
    if node.op != "attention":
        return None
    heads = node.ints["kv_heads"]
    chunks = (before + new) // KV_CHUNK + 1
    by_head = rows * chunks < 2 * threads or new > QUERIES
    groups = rows * -(-new // QUERIES) * (heads if by_head else 1)
    total = 2 * tokens * (before + new / 2) * node.ints["heads"] * node.ints["head_dim"]
    # A group that is a large part of the work is split into its chunks.
    parts = chunks if 4 * threads > groups else 1
    return [total / groups / parts] * (groups * parts), 1


def balance(nodes: Sequence[Node], shape: tuple[int, int, int], speeds: Sequence[float]) -> float:
    """The share of the cores' speed that a step uses."""
    work = time = 0.0
    for node in nodes:
        cut = tiles_of(node, *shape, len(speeds))
        if cut is not None:
            work += sum(cut[0])
            time += makespan(*cut, speeds)
    return work / (time * sum(speeds))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", default="1B,3B")
    given = parser.parse_args()
    print("| model | step | " + " | ".join(f"{n} threads" for n in THREADS) + " |")
    print("|---|---|" + "---|" * len(THREADS))
    for name in given.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            nodes = planned_model(engine_flags(name, Path(folder))).nodes
        for step, shape in STEPS.items():
            cells = [
                f"{balance(nodes, shape, [1.0] * n):.0%}, "
                f"{balance(nodes, shape, [0.5] + [1.0] * (n - 1)):.0%}"
                for n in THREADS
            ]
            print(f"| {name} | {step} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
