"""`predict`: whether a model fits on a machine, and how fast it serves a workload there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import msgspec
import numpy as np

from galley.config import EngineConfig
from galley.config.resolve import Machine as Host
from galley.config.resolve import from_kwargs, resolve
from galley.errors import ConfigError
from galley.kernels.backend import StepLimits
from galley.kv.capacity import capacity
from galley.planning.machine import Machine
from galley.planning.program import PlannedModel
from galley.planning.simulate import StandIn, Workload, simulate
from galley.planning.step import StepLoad, StepModel
from galley.runner.memory import NULL_BLOCKS, MemoryUse, fit_length, kv_capacity
from galley.runner.runner import step_limits

#: Bytes of a server's processes without a model: launcher, API server, engine.
PROCESSES = 122_000_000
#: Blocks of a pool for a load, beyond those that it holds at most.
SPARE = 1.05


class MemoryPlan(msgspec.Struct, frozen=True):
    """Bytes on one device.

    Attributes:
        available: before anything is loaded.
        weights, activations: as an engine holds them.
        kv_cache: of the whole pool; its memory is taken as it is written.
        kv_per_token, kv_per_sequence: of a sequence of this workload's length.
        kv_tokens: that the pool holds.
        sequences: of this workload that the pool holds at once.
        pool: bytes of a pool for this workload (--kv-cache-memory-bytes). An engine uses blocks
            that it has not used before first, so that in time it takes the whole of its pool.
        resident: of all processes with such a pool.
    """

    available: int
    weights: int
    activations: int
    kv_cache: int
    kv_per_token: int
    kv_per_sequence: int
    kv_tokens: int
    sequences: float
    pool: int
    resident: int


class Prediction(msgspec.Struct, frozen=True):
    """The service that a workload gets. Times in seconds, rates per second, all from a simulation
    of the scheduler with the step model's times, but for the memory.

    Attributes:
        ranks: devices that share the model, the fewest on which it fits.
        engines: of so many devices each, that have work.
        max_model_len: tokens of the longest sequence that is accepted.
        requests, output_tokens, total_tokens: per second, on the whole machine.
        ttft, itl: mean, and percentiles 50 and 99.
        tpot: mean seconds between the tokens of an answer.
        bound: what limits a steady decode step: "memory", "arithmetic", "overhead", "link".
        decode_step, prefill_rate: seconds of a step in which all decode; prompt tokens per second.
        shares: of a decode step's seconds, by kind of operation, the largest first.
        tokens_per_joule: output; None where the machine's power is not known.
        preemptions: in the simulation.
    """

    model: str
    machine: str
    workload: Workload
    memory: MemoryPlan
    ranks: int
    engines: int
    max_model_len: int
    requests: float
    output_tokens: float
    total_tokens: float
    ttft: dict[str, float]
    itl: dict[str, float]
    tpot: float
    bound: str
    decode_step: float
    prefill_rate: float
    shares: dict[str, float]
    tokens_per_joule: float | None
    preemptions: int


class DoesNotFit(ConfigError):
    """The model does not fit on the machine; the message says what is missing."""


def predict(
    model: PlannedModel, machine: Machine, workload: Workload, engine: dict[str, Any] | None = None
) -> Prediction:
    """Pure: the same arguments give the same prediction.

    Args:
        engine: engine flags by their Python names, as for `galley serve`.

    Raises:
        DoesNotFit: not even one request fits.
        ConfigError: flags contradict each other, or the workload exceeds the model's length.
    """
    check(model, workload)
    ranks, config, memory, blocks = fit(model, machine, workload, engine or {})
    step = step_model(model, machine, ranks)
    executor = stand_in(model, config, blocks)
    engines = machine.devices // ranks
    if not workload.rate:
        engines = min(engines, workload.concurrency)  # more would be idle
    share = each_engine(workload, engines)
    front_end = machine.request_seconds, machine.request_delay
    run = simulate(config, executor, step.seconds, share, *front_end)
    context = workload.prompt + workload.output // 2
    running = min(share.concurrency, int(memory.sequences) or 1)
    if workload.rate:
        running = max(1, round(sum(np.subtract(run.ends, run.firsts)) / run.seconds))
    load = StepLoad.of([context] * running, [1] * running, running)
    parts = step.parts(load)
    decode = sum(part.seconds for part in parts)
    chunk = min(workload.prompt, config.scheduler.max_num_batched_tokens or workload.prompt)
    output = run.tokens / run.seconds * engines
    shares: dict[str, float] = defaultdict(float)
    bounds: dict[str, float] = defaultdict(float)
    for part in parts:
        shares[part.label] += part.seconds / decode
        bounds[part.bound] += part.seconds
    return Prediction(
        model=model.name,
        machine=machine.title if machine.devices == 1 else f"{machine.devices} x {machine.title}",
        workload=workload,
        memory=memory,
        ranks=ranks,
        engines=engines,
        max_model_len=executor.max_model_len,
        requests=share.num_requests / run.seconds * engines,
        output_tokens=output,
        total_tokens=output * (workload.prompt + workload.output) / workload.output,
        ttft=_spread(np.subtract(run.firsts, run.arrivals)),
        itl=_spread(run.gaps),
        tpot=fmean(run.gaps) if run.gaps else 0.0,
        bound=max(bounds, key=lambda name: bounds[name]),
        decode_step=decode,
        prefill_rate=chunk / step.seconds(StepLoad.of([0], [chunk], 1)),
        shares=dict(sorted(shares.items(), key=lambda item: -item[1])),
        tokens_per_joule=output / (machine.watts * machine.devices) if machine.watts else None,
        preemptions=run.preemptions,
    )


def each_engine(workload: Workload, engines: int) -> Workload:
    """The share of one of several engines."""
    concurrency = max(1, -(-workload.concurrency // engines))
    return msgspec.structs.replace(workload, concurrency=concurrency, rate=workload.rate / engines)


def check(model: PlannedModel, workload: Workload) -> None:
    """Raise ConfigError for a workload that no engine could serve."""
    for name in ("prompt", "output", "concurrency"):
        if getattr(workload, name) < 1:
            raise ConfigError(f"--{name} must be at least 1.", field=name)
    if workload.rate < 0:
        raise ConfigError("--rate must not be negative.", field="rate")
    if not 0 <= workload.shared < workload.prompt:
        raise ConfigError("--shared must be less than --prompt.", field="shared")
    length, most = workload.prompt + workload.output, model.info.max_position
    if length > most:
        raise ConfigError(
            f"--prompt {workload.prompt} and --output {workload.output} are {length} tokens, but "
            f"the model supports {most}.",
            field="prompt",
        )


def step_model(model: PlannedModel, machine: Machine, ranks: int = 1) -> StepModel:
    vocab = model.info.vocab_size
    return StepModel(model.nodes, model.numbers, vocab, model.hidden, machine, ranks)


def stand_in(model: PlannedModel, config: EngineConfig, num_blocks: int) -> StandIn:
    """The executor of a simulation."""
    assert config.scheduler.max_num_seqs is not None
    length = config.model.max_model_len
    assert length is not None
    return StandIn(model.layout.groups, num_blocks, config.scheduler.max_num_seqs, length)


def fit(
    model: PlannedModel, machine: Machine, workload: Workload, engine: dict[str, Any]
) -> tuple[int, EngineConfig, MemoryPlan, int]:
    """The fewest devices on which the model and one request fit (a power of two), the resolved
    configuration, the memory of one device, and the blocks of the KV cache. Raises as `predict`."""
    length = workload.prompt + workload.output
    wanted = {"max_model_len": max(length, engine.get("max_model_len") or 0), **engine}
    config = from_kwargs(wanted, "server")
    host = Host(1, machine.memory)
    config = resolve(config, host, model.info)
    limits = step_limits(config)
    longest = config.model.max_model_len or length
    chunk = config.scheduler.max_num_batched_tokens or length
    error: ConfigError | None = None
    ranks = 1
    while ranks <= machine.devices:
        use = MemoryUse(
            machine.memory, model.weight_bytes // ranks, model.activation_bytes(limits) // ranks
        )
        block = -(-model.layout.block_bytes // ranks)
        try:
            pool = kv_capacity(config.cache, block, use)
            fits = fit_length(longest, longest, pool, model.layout, chunk)
        except ConfigError as e:
            error, ranks = e, ranks * 2
            continue
        held = capacity(model.layout.groups, pool.num_blocks - NULL_BLOCKS, length, chunk)
        per_sequence = int((pool.num_blocks - NULL_BLOCKS) * block / held.sequences)
        each = min(-(-workload.concurrency // (machine.devices // ranks)), held.sequences)
        whole = int(min(SPARE * each * per_sequence + block, pool.num_blocks * block))
        rows = min(workload.concurrency, limits.rows)
        tokens = min(limits.tokens, rows * workload.prompt)
        touched = model.touched_bytes(limits, StepLimits(tokens, rows, rows)) // ranks
        memory = MemoryPlan(
            available=machine.memory,
            weights=use.weights,
            activations=use.activations,
            kv_cache=pool.num_blocks * block,
            kv_per_token=model.layout.bytes_per_token // ranks,
            kv_per_sequence=per_sequence,
            kv_tokens=held.tokens,
            sequences=held.sequences,
            pool=whole,
            resident=use.weights + touched + whole + PROCESSES,
        )
        assert fits == longest
        return ranks, config, memory, pool.num_blocks
    assert error is not None
    devices = f" on {machine.devices} devices together" if machine.devices > 1 else ""
    raise DoesNotFit(f"{model.name} does not fit{devices}: {error.message}", field="machine")


def _spread(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    found = np.asarray(values, np.float64)
    if not len(found):
        return {"mean": 0.0, "p50": 0.0, "p99": 0.0}
    p50, p99 = np.percentile(found, (50, 99))
    return {"mean": float(found.mean()), "p50": float(p50), "p99": float(p99)}
