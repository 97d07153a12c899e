"""`linear` by weight format and number of rows: µs and GB/s of weights.

    python -m benchmarks.linear_rows [--rows 1,2,4,8,64] [--size 2048] [--megabytes 600]
        [--activations auto,bf16] [FORMAT ...]

One thread and CPU time; weights are read in turn from copies that no cache holds together.
Formats are measured in turn within each round, so that a busy machine slows all of them; the least
and the median of the rounds are printed.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

from benchmarks.formats import NF4
from galley.kernels.activations import activation_kind
from galley.kernels.program import Kind
from galley.kernels.weights import PackedWeight, pack
from tests.kernels import activation_rows
from tests.kernels.native_harness import Native, aligned
from tests.kernels.test_linear import E4M3, Recipe, dense_weight, weight_of

FP4 = np.array([0, 1, 128, 192, 64, 96, 32, 48], np.float32) / 192  # of bitsandbytes
BF16: Any = ml_dtypes.bfloat16
FORMATS: dict[str, Recipe | None] = {
    "bf16": None,
    "W8A8": Recipe(8, 0, 128, scale=np.float32, activations="token"),
    "Q4_K": Recipe(4, 32, scale=np.uint8, min=True, super_scales=True),
    "Q6_K": Recipe(6, 16, 32, scale=np.int8, super_scales=True),
    "Q4_0": Recipe(4, 32, 8),
    "Q4_1": Recipe(4, 32, min=True),
    "Q5_K": Recipe(5, 32, scale=np.uint8, min=True, super_scales=True),
    "Q8_0": Recipe(8, 32, 128),
    "W4A16": Recipe(4, 128, 8, BF16, activations="as_is"),
    "AWQ": Recipe(4, 128, "each", activations="as_is"),
    "NF4": Recipe(4, 64, scale=np.float32, table=NF4, activations="as_is"),
    "FP4": Recipe(4, 64, scale=np.float32, table=np.concatenate([FP4, -FP4]), activations="as_is"),
    "FP8 per output": Recipe(8, 0, scale=np.float32, table=E4M3, activations="as_is"),
    "FP8 blocks of 128": Recipe(8, 128, scale=np.float32, table=E4M3, activations="as_is"),
}
COPIES = 4  # that one run multiplies with


@dataclass
class Case:
    """Each of `natives` multiplies `rows` rows with COPIES weights of `size` bytes."""

    name: str
    rows: int
    size: int
    natives: list[Native]
    seconds: list[float] = field(default_factory=list)

    def run(self, turn: int) -> None:
        native = self.natives[turn % len(self.natives)]
        native.num_computed[:] = 0
        start = time.thread_time()
        native.run([self.rows])
        self.seconds.append((time.thread_time() - start) / COPIES)


def case(name: str, weight: PackedWeight, copies: list[Any], rows: int, asked: Any) -> Case:
    n, k = weight.shape
    kind = Kind(activation_kind(weight.format, asked))
    values = np.random.default_rng(rows).standard_normal((rows, k)).astype(np.float32)
    arrays = {"x": activation_rows.quantized(values, kind), "out": aligned((rows, n), np.float32)}
    natives = []
    for first in range(0, len(copies), COPIES):
        native = Native(max_len=rows)
        for data in copies[first : first + COPIES]:
            native.add("linear", {**arrays, "weight": data}, x_kind=kind, **weight.arguments())
        natives.append(native)
    return Case(f"{name}, {kind.name}", rows, weight.data.nbytes, natives)


def copies_of(weight: PackedWeight, megabytes: int) -> list[Any]:
    """Copies of its data, so many bytes in all."""
    copies = []
    for _ in range(COPIES * max(1, -(-megabytes * 10**6 // (COPIES * weight.data.nbytes)))):
        data = aligned(weight.data.shape, weight.data.dtype)
        data[:] = weight.data
        copies.append(data)
    return copies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("formats", nargs="*", default=list(FORMATS), metavar="FORMAT")
    parser.add_argument("--rows", default="1,2,4,8,64")
    parser.add_argument("--size", type=int, default=2048, help="inputs and outputs")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--megabytes", type=int, default=600, help="copies of a format's weights")
    parser.add_argument("--activations", default="auto", help="as of --quantized-activations")
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    cases = []
    for name in given.formats:
        recipe, size = FORMATS[name], given.size
        made = (
            dense_weight(size, size, rng) if recipe is None else weight_of(recipe, size, size, rng)
        )
        weight = pack(made, "bf16")
        copies = copies_of(weight, given.megabytes)
        cases += [
            case(name, weight, copies, int(rows), asked)
            for asked in given.activations.split(",")
            for rows in given.rows.split(",")
        ]
    turn = 0
    for _ in range(given.rounds):
        for each in cases:
            each.run(turn)
            turn += 1
    print(
        "| format | rows | µs, least | median | GB/s, highest | median |\n|---|---|---|---|---|---|"
    )
    for each in cases:
        least, median = min(each.seconds), float(np.median(each.seconds))
        speeds = f"{each.size / least / 1e9:.1f} | {each.size / median / 1e9:.1f}"
        print(f"| {each.name} | {each.rows} | {least * 1e6:.0f} | {median * 1e6:.0f} | {speeds} |")


if __name__ == "__main__":
    main()
