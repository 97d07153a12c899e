"""`galley bench kernels`: times each native operation at a model's real shapes, compared with the
PyTorch reference and with the machine's limits measured in the same run (`work.py`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from galley.cli.bench.offline import engine_parser, write_json
from galley.cli.bench.tables import print_table
from galley.cli.parser import engine_flags, make
from galley.config.extras import install_command
from galley.errors import ConfigError
from galley.kernels.program import Node
from galley.planning.limits import MachineLimits, measure_limits
from galley.planning.steps import Shape, StepBench, Timed
from galley.planning.work import Work, work_of


@dataclass(frozen=True)
class KernelFlags:
    """Kernels"""

    decode: str = "1,64"
    """Rows of decode steps, comma-separated; empty: none."""
    context: int = 192
    """Tokens in the KV cache for each row."""
    prefill: str = "512"
    """Prompt tokens of prefill steps, comma-separated; empty: none."""
    repetitions: int = 15
    """Steps per shape; medians are reported."""
    reference: bool = False
    """Also time the PyTorch reference of each operation (needs torch; slow)."""
    plot: str | None = None
    """Plot the roofline to this PNG file (needs matplotlib)."""
    output_json: str | None = None
    """Write the result to this JSON file."""


def main(argv: list[str]) -> int:
    parser = engine_parser(
        "bench kernels",
        "Time each native operation of a step, against reference and roofline.",
        [KernelFlags],
        "galley bench kernels --decode 1,16,64 --context 512",
        "galley bench kernels model.gguf --prefill '' --reference",
    )
    values = parser.read(argv)
    flags = make(KernelFlags, values)
    shapes = read_shapes(flags)
    bench = StepBench(engine_flags(values), shapes)
    limits = measure_limits(bench.threads)
    peaks = ", ".join(f"{name} {rate / 1e9:.0f} G(FL)OP/s" for name, rate in limits.peak.items())
    print(f"{limits.threads} threads: memory read {limits.read / 1e9:.1f} GB/s, {peaks}")
    result: dict[str, Any] = {"limits": limits.__dict__, "steps": []}
    for shape in shapes:
        rows = operation_rows(bench, shape, limits, flags)
        whole = sorted(bench.seconds(shape, flags.repetitions))[flags.repetitions // 2]
        print_table(f"\n{describe(shape)}: {whole * 1e3:.3f} ms", rows)
        result["steps"].append({"shape": shape.__dict__, "seconds": whole, "operations": rows})
    if flags.plot:
        from galley.cli.bench.plots import plot_roofline

        plot_roofline(result, flags.plot)
    write_json(flags.output_json, result)
    return 0


def read_shapes(flags: KernelFlags) -> list[Shape]:
    """Parse the shapes to measure. Raises ConfigError if there are none."""
    try:
        decode = [int(part) for part in flags.decode.split(",") if part.strip()]
        prefill = [int(part) for part in flags.prefill.split(",") if part.strip()]
    except ValueError:
        decode = prefill = []
    if min([*decode, *prefill], default=0) < 1 or flags.context < 1 or flags.repetitions < 1:
        raise ConfigError(
            "--decode and --prefill take positive numbers with commas.", field="decode"
        )
    shapes = [Shape(rows, flags.context, 1) for rows in decode]
    return shapes + [Shape(1, 0, tokens) for tokens in prefill]


def describe(shape: Shape) -> str:
    if shape.new == 1:
        return f"decode, {shape.rows} rows, {shape.context} tokens of context each"
    return f"prefill of {shape.new} tokens"


def operation_rows(
    bench: StepBench, shape: Shape, limits: MachineLimits, flags: KernelFlags
) -> list[dict[str, Any]]:
    """One row per kind of operation and weight shape, slowest first."""
    timed = bench.operations(shape, flags.repetitions)
    total = sum(item.seconds for item in timed)
    kinds: dict[Work, list[Timed]] = {}
    for item in timed:
        work = replace(work_of(item.node, shape, bench.cache), elements=0.0)  # not printed
        kinds.setdefault(work, []).append(item)
    reference = reference_timer(bench, shape) if flags.reference else lambda node: None
    rows = []
    for work, items in sorted(kinds.items(), key=lambda kind: -sum(i.seconds for i in kind[1])):
        each = sum(item.seconds for item in items) / len(items)
        roofline = work.roofline(limits)
        defined = reference(items[0].node)
        rows.append(
            {
                "operation": work.label,
                "calls": len(items),
                "µs each": each * 1e6,
                "% of step": 100 * each * len(items) / total,
                "GB/s": work.bytes / each / 1e9 if work.bytes else None,
                "GFLOP/s": work.operations / each / 1e9 if work.operations else None,
                "roofline µs": roofline * 1e6 if roofline else None,
                "% of roofline": 100 * roofline / each if roofline else None,
                "reference µs": None if defined is None else defined * 1e6,
            }
        )
    return rows


def reference_timer(bench: StepBench, shape: Shape) -> Callable[[Node | None], float | None]:
    """Timer of reference operations, in seconds. Raises ConfigError if torch is not installed."""
    try:
        from galley.cli.bench.kernel_reference import seconds
    except ModuleNotFoundError as e:
        raise ConfigError(
            f"--reference needs PyTorch: {install_command('torch')}", field="reference"
        ) from e
    return lambda node: None if node is None else seconds(node, shape)
