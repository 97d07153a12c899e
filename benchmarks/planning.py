"""Predictions of `galley plan` beside servers of this machine: the table of docs/planning.md.

    python -m benchmarks.planning [--models 'built in,135M,135M int8,1B,3B'] [--streams 1,8,32,64]
        [--passes 1] [--again]
    python -m benchmarks.planning --steps

The built-in model (Q4_1), its shape with random weights in bf16 and int8, and the shapes of Llama
3.2 1B and 3B in bf16. Each row is a server with the plan's flags, as `galley plan --verify` serves
it: loads between measurements of the machine, averages of both; with --passes N each is served N
times, and figures are averages of all. What was measured is kept in build/planning.json, from which
the benchmark goes on (--again: from the start); with all rows the table in docs/planning.md is
written.

With --steps nothing is served: the step model is compared with the operations of real steps, each
at the mean of its times.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from galley.cli.plan_verify import average, calibrated, compared, measure
from galley.loader.source import default_model
from galley.planning.predict import step_model
from galley.planning.program import planned_model
from galley.planning.simulate import Workload
from galley.planning.step import StepLoad
from galley.planning.steps import Shape, StepBench

ROOT = Path(__file__).parents[1]
PAGE, KEPT = ROOT / "docs" / "planning.md", ROOT / "build" / "planning.json"
BEGIN, END = "<!-- benchmarks.planning -->", "<!-- end -->"
MODELS, STREAMS = ("built in", "135M", "135M int8", "1B", "3B"), (1, 8, 32, 64)
HEAD = (
    "| model | streams | in, out | memory, MB | tokens/s | TTFT, ms | ITL, ms | foreign cores "
    "| drift |",
    "|---|---|---|---|---|---|---|---|---|",
)
#: Steps that are compared, with other rows than those that the machine is measured with: decoding,
#: 256 tokens of context each, and prompts.
SHAPES_OF_STEPS = [*(Shape(rows, 256, 1) for rows in (1, 12, 24, 40, 56)), Shape(1, 0, 96)]
#: Sizes of SmolLM2 and of Llama 3.2, from the config.json of their checkpoints.
SHAPES: dict[str, dict[str, int]] = {
    "135M": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
    | {"num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152},
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
    | {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64},
    "3B": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28}
    | {"num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128},
}
COMMON: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}


def shape(name: str, folder: Path) -> Path:
    """A folder with the config.json of a shape."""
    path = folder / name
    path.mkdir()
    (path / "config.json").write_text(json.dumps({**COMMON, **SHAPES[name]}))
    return path


def engine_flags(name: str, folder: Path) -> dict[str, Any]:
    if name == "built in":
        return {}
    size, _, method = name.partition(" ")
    engine = {"model": str(shape(size, folder)), "load_format": "dummy"}
    quantization = {"quantization": method} if method else {}
    return {**engine, "tokenizer": str(default_model()), **quantization}


def compare_steps(name: str) -> None:
    """Print predicted and measured milliseconds of some steps, host and sampling left out."""
    with tempfile.TemporaryDirectory(prefix="galley-plan-") as folder:
        engine = engine_flags(name, Path(folder))
        model = planned_model(engine)
        steps = step_model(model, calibrated(model)())
        bench = StepBench(engine, SHAPES_OF_STEPS)
    for shape, found in bench.means(SHAPES_OF_STEPS).items():
        measured = sum(seconds for work, seconds in found if work.label != "sample")
        new, before = [shape.new] * shape.rows, [shape.context] * shape.rows
        parts = steps.parts(StepLoad.of(before, new, shape.rows))
        predicted = sum(p.seconds for p in parts if p.label not in ("host", "sample"))
        what = f"{shape.rows} rows" if shape.new == 1 else f"a prompt of {shape.new}"
        times = f"{predicted * 1e3:.2f} | {measured * 1e3:.2f} | {predicted / measured:.2f}"
        print(f"| {name} | {what} | {times} |", flush=True)


def workload(name: str, streams: int) -> Workload:
    """One and a half requests a client, or a short one where a prompt takes long."""
    if name in ("1B", "3B"):
        return Workload(64, 16, streams, requests=max(streams, 2))
    return Workload(128, 64, streams, requests=max(3 * streams // 2, 4))


def cells(row: dict[str, Any]) -> str:
    """A row of the table: predicted / measured (ratio)."""
    load = row["workload"]
    shown = [
        f"{f['predicted']:,.0f} / {f['measured']:,.0f} ({f['ratio']:.2f})"
        for f in row["figures"][:4]
    ]
    names = f"{row['name']} | {load['concurrency']} | {load['prompt']}, {load['output']}"
    return f"| {names} | {' | '.join(shown)} | {row['foreign_cores']:.2f} | {row['drift']:.2f} |"


def measured_rows(name: str, loads: list[Workload]) -> Iterator[dict[str, Any]]:
    """A row for each load of a model."""
    with tempfile.TemporaryDirectory(prefix="galley-plan-") as folder:
        engine = engine_flags(name, Path(folder))
        model = planned_model(engine)
        for load in loads:
            yield {**measure(model, load, engine), "name": name}


def mean(attempts: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of several measurements of it."""
    predicted, measured = (
        average([[f[key] for f in a["figures"]] for a in attempts])
        for key in ("predicted", "measured")
    )
    return {
        **attempts[0],
        "figures": compared(predicted, measured),
        "foreign_cores": fmean(a["foreign_cores"] for a in attempts),
        "drift": max(a["drift"] for a in attempts),
    }


def misses(rows: list[dict[str, Any]]) -> list[str]:
    """The figures that are off by more than a tenth (memory) or a quarter (all others)."""
    return [
        f"{row['name']}, {row['workload']['concurrency']}: {f['']} {f['ratio']:.2f}"
        for row in rows
        for f, most in zip(row["figures"][:4], (0.10, 0.25, 0.25, 0.25), strict=True)
        if abs(f["ratio"] - 1) > most
    ]


def within(rows: list[dict[str, Any]]) -> str:
    count = 4 * len(rows)
    return f"Of {count} figures {count - len(misses(rows))} are within 25 % (memory: 10 %)."


def write_table(rows: list[dict[str, Any]]) -> None:
    """Put the table into docs/planning.md, between its two marks."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    table = "\n".join([*HEAD, *map(cells, rows), "", within(rows)])
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--streams", default=",".join(map(str, STREAMS)))
    parser.add_argument("--passes", type=int, default=1)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--steps", action="store_true")
    given = parser.parse_args()
    names = given.models.split(",")
    if given.steps:
        for name in names:
            compare_steps(name)
        return
    kept: list[dict[str, Any]] = []
    if KEPT.exists() and not given.again:
        kept = json.loads(KEPT.read_text())
    found: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for row in kept:
        found[row["name"], row["workload"]["concurrency"]].append(row)
    print(*HEAD, *map(cells, kept), sep="\n", flush=True)
    for number in range(given.passes):
        for name in names:
            loads = [workload(name, int(count)) for count in given.streams.split(",")]
            left = [load for load in loads if len(found[name, load.concurrency]) <= number]
            for row in measured_rows(name, left) if left else ():
                kept.append(row)
                found[name, row["workload"]["concurrency"]].append(row)
                print(cells(row), flush=True)
                KEPT.parent.mkdir(exist_ok=True)
                KEPT.write_text(json.dumps(kept, indent=1))
    rows = [mean(same) for name in MODELS for n in STREAMS if (same := found[name, n])]
    if len(rows) == len(MODELS) * len(STREAMS):
        write_table(rows)
    if rows:
        print(within(rows), *misses(rows), sep="\n  ")


if __name__ == "__main__":
    main()
