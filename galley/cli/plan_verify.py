"""`galley plan --verify`: serves the plan and prints predicted against measured."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path
from statistics import fmean, harmonic_mean
from typing import Any, NamedTuple

import msgspec

from galley.cli.bench import process
from galley.cli.bench.serve import Bench, Prompts, read_settings
from galley.cli.bench.startup import connect, end, free_port, serve_command
from galley.cli.bench.tables import print_table
from galley.config.resolve import Machine as Host
from galley.errors import ServerError
from galley.planning.advice import pool_mib
from galley.planning.calibrate import calibration
from galley.planning.machine import THIS, Machine
from galley.planning.predict import MemoryPlan, Prediction, fit, predict
from galley.planning.program import PlannedModel
from galley.planning.simulate import Workload

FIGURES = ("memory, MB", "output tokens/s", "TTFT mean, ms", "ITL mean, ms", "ITL p99, ms")
#: The load is sent again until it has been served for so many seconds, at most so often.
_SERVED, _ROUNDS = 6.0, 3
#: The host's time of a token, of the one that is planned: here the client computes on the same
#: cores (11 µs a token, where the front end takes 52), and the front end adds ids (22 µs).
_TOKEN = 1.64


def verify(model: PlannedModel, workload: Workload, engine: dict[str, Any], as_json: bool) -> int:
    row = measure(model, workload, engine)
    if as_json:
        print(json.dumps(row, indent=2))
        return 0
    print_table(f"{row['model']}, {workload.concurrency} at once", row["figures"])
    print(f"Other processes used {row['foreign_cores']:.2f} cores meanwhile.")
    print(f"The machine's speed, measured before and after, changed by {row['drift'] - 1:.0%}.")
    return 0


def calibrated(model: PlannedModel) -> Callable[[], Machine]:
    """A function that measures this machine now, with the model's formats and sizes, as it is
    beside a client."""
    now = calibration(model.formats, model.numbers, model.sizes, model.threads)

    def beside_client() -> Machine:
        machine = now()
        return msgspec.structs.replace(machine, row_seconds=_TOKEN * machine.row_seconds)

    return beside_client


def measure(
    model: PlannedModel,
    workload: Workload,
    engine: dict[str, Any],
    calibrate: Callable[[PlannedModel], Callable[[], Machine]] = calibrated,
) -> dict[str, Any]:
    """Serve the model as planned, send it the workload, and measure the machine before and after.

    A load of few seconds is sent several times, with a measurement of the machine after each: the
    speed of a virtual machine changes within seconds. Figures are averages; `drift` is the largest
    ratio of two predictions of the throughput.
    """
    engine = sized(engine, workload)
    room = Machine(THIS, THIS, Host.detect().available_memory, 0.0, {})
    _, _, memory, _ = fit(model, room, workload, engine)
    machine = calibrate(model)

    def prediction() -> Prediction:
        # The server and what measures have a part of the memory now.
        now = msgspec.structs.replace(machine(), memory=room.memory)
        return predict(model, now, workload, engine)

    loads: list[Served] = []
    with serving(engine, memory) as (port, pid):
        predictions = [prediction()]
        while len(loads) < _ROUNDS and sum(load.seconds for load in loads) < _SERVED:
            loads.append(run(port, pid, workload, engine.get("tokenizer"), len(loads)))
            predictions.append(prediction())
    speeds = [predicted.output_tokens for predicted in predictions]
    return {
        "model": predictions[0].model,
        "workload": msgspec.to_builtins(workload),
        "foreign_cores": fmean(load.foreign_cores for load in loads),
        "drift": max(speeds) / min(speeds),
        "figures": compared(
            average([predicted_figures(predicted) for predicted in predictions]),
            average([load.figures for load in loads]),
        ),
    }


def sized(engine: dict[str, Any], workload: Workload) -> dict[str, Any]:
    """The flags of an engine with room for a workload."""
    sizes = {"max_model_len": workload.prompt + workload.output}
    return {**sizes, "max_num_seqs": workload.concurrency, **engine}


class Served(NamedTuple):
    """Figures of a load, in the order of FIGURES; cores that other processes used meanwhile."""

    seconds: float
    foreign_cores: float
    figures: list[float]


def run(port: int, pid: int, workload: Workload, tokenizer: str | None, number: int) -> Served:
    """Send a workload to the server of these processes, with prompts that depend on `number`."""
    settings = read_settings(
        [
            *("--port", str(port), "--max-concurrency", str(workload.concurrency)),
            *("--input-len", str(workload.prompt - workload.shared)),
            *("--random-prefix-len", str(workload.shared)),
            *("--output-len", str(workload.output), "--num-warmups", "1"),
            *("--num-prompts", str(workload.num_requests), "--temperature", "0"),
            *(("--tokenizer", tokenizer) if tokenizer else ()),
            # A plan knows tokens, and a random model's tokens often have no text.
            *("--extra-body", '{"return_token_ids": true}', "--disable-tqdm"),
        ]
    )
    bench = Bench(settings, settings.base_url)
    prompts = Prompts(settings, bench)
    bench.warm_up([replace(sample, output_len=2) for sample in prompts.warm_up()])
    samples = prompts.round(number)
    before, own = process.machine_busy(), process.tree_usage(pid).cpu
    begin = time.perf_counter()
    result, outcome = bench.measure(samples, number)
    wall = time.perf_counter() - begin
    used = process.tree_usage(pid).cpu - own + outcome.client_cpu
    foreign = process.machine_busy() - before - used
    if result["failed"]:
        raise ServerError(f"{result['failed']} requests failed: {outcome.outcomes[0].error}")
    latencies = (result[name] for name in ("mean_ttft_ms", "mean_tpot_ms", "p99_itl_ms"))
    measured = [resident(pid) / 1e6, result["output_throughput"], *latencies]
    return Served(wall, max(foreign, 0.0) / wall, measured)


def predicted_figures(predicted: Prediction) -> list[float]:
    """The figures of a prediction that are measured, in the order of FIGURES."""
    latencies = predicted.ttft["mean"], predicted.tpot, predicted.itl["p99"]
    memory = predicted.memory.resident / 1e6
    return [memory, predicted.output_tokens, *(1e3 * seconds for seconds in latencies)]


def average(rows: Sequence[Sequence[float]]) -> list[float]:
    """FIGURES of several runs at their mean speed: the harmonic means of times. A long load gets
    the mean of the speeds that the machine has meanwhile, not the mean of the times."""
    memory, tokens, *times = zip(*rows, strict=True)
    return [fmean(memory), fmean(tokens), *map(harmonic_mean, times)]


def compared(predicted: Sequence[float], measured: Sequence[float]) -> list[dict[str, Any]]:
    """Rows of a table, one for each of FIGURES."""
    return [
        {"": name, "predicted": p, "measured": m, "ratio": p / m if m else None}
        for name, p, m in zip(FIGURES, predicted, measured, strict=True)
    ]


def resident(pid: int) -> int:
    """Bytes of a process and its descendants: what is theirs, and mapped files once, although
    other servers of the model may map the same weights."""
    own, files = 0, 0
    for member in process.tree(pid):
        try:
            parts = Path(f"/proc/{member}/smaps_rollup").read_text().splitlines()
            parts += Path(f"/proc/{member}/status").read_text().splitlines()
        except OSError:  # it has just ended
            continue
        sizes = {name: text for name, _, text in (line.partition(":") for line in parts)}
        own += sum(int(sizes[name].split()[0]) for name in ("Pss_Anon", "Pss_Shmem"))
        files = max(files, int(sizes["RssFile"].split()[0]))
    return 1024 * (own + files)


@contextmanager
def serving(engine: dict[str, Any], memory: MemoryPlan) -> Iterator[tuple[int, int]]:
    """A server with the planned KV cache that has loaded its model, as (port, process id); ended in
    the end."""
    port, pool = free_port(), {"kv_cache_memory_bytes": f"{pool_mib(memory)}M"}
    address = ["--host", "127.0.0.1", "--port", str(port)]
    with tempfile.TemporaryFile() as log:
        begin = time.perf_counter()
        server = subprocess.Popen(
            [*serve_command({**pool, **engine}), *address], stdout=log, stderr=log
        )
        try:
            connect(port, server, begin).close()
            wait_until_loaded(port)
            yield port, server.pid
        except OSError as e:
            log.seek(0)
            output = log.read()[-500:].decode(errors="replace")
            raise ServerError(f"the server did not serve ({e}): {output}") from e
        finally:
            end(server)


def wait_until_loaded(port: int) -> None:
    """Wait for the model of a server that listens. Raises OSError if the server ends instead."""
    while True:
        connection = HTTPConnection("127.0.0.1", port)
        connection.request("GET", "/health")
        status = connection.getresponse().status
        connection.close()
        if status == 200:
            return
        time.sleep(0.05)
