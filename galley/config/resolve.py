"""Completes the user's settings to a configuration. Pure functions.

`from_kwargs` reads names and values; `resolve` fills in the settings that depend on the use (server
or offline), the machine and the model, and refuses contradictions. Environment variables are read
by `environment` only.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec

from galley.config.buckets import check_buckets
from galley.config.cores import usable_cores
from galley.config.engine import (
    CacheConfig,
    DeviceConfig,
    EngineConfig,
    LoadConfig,
    LoRAConfig,
    ModelConfig,
    ObservabilityConfig,
    ParallelConfig,
    SchedulerConfig,
    SpeculativeConfig,
    StructuredOutputsConfig,
)
from galley.config.flags import coerce, flags_of
from galley.config.model_info import ModelInfo
from galley.config.pooling import pooling_settings, runner_of
from galley.config.registries import METHOD_ALIASES, ONLINE_METHODS
from galley.config.server import ServerConfig
from galley.config.variables import check_variables
from galley.config.vllm_flags import asks, disposition
from galley.errors import ConfigError

log = logging.getLogger(__name__)

Usage = Literal["server", "offline"]
#: Token budget and sequences by use (vLLM's CPU defaults).
DEFAULTS: dict[Usage, tuple[int, int]] = {"server": (2048, 128), "offline": (4096, 256)}
#: Milliseconds of a step with prompts while others decode. Latency matters for a server only.
TARGET_ITL: dict[Usage, float] = {"server": 60.0, "offline": 0.0}
SECTIONS: dict[str, type] = {
    "model": ModelConfig,
    "load": LoadConfig,
    "cache": CacheConfig,
    "scheduler": SchedulerConfig,
    "parallel": ParallelConfig,
    "device": DeviceConfig,
    "observability": ObservabilityConfig,
    "structured": StructuredOutputsConfig,
    "speculative": SpeculativeConfig,
    "lora": LoRAConfig,
}


class Machine(msgspec.Struct, frozen=True):
    """Properties of the machine that settings depend on."""

    num_cores: int
    available_memory: int
    """Bytes."""

    @staticmethod
    def detect() -> Machine:
        return Machine(usable_cores(), available_memory())


def available_memory() -> int:
    """Bytes available without swapping: MemAvailable, or less under a cgroup limit."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        with open("/proc/meminfo", encoding="ascii") as f:
            for line in f:
                if line.startswith("MemAvailable:"):
                    free = int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as f:
            limit = f.read().strip()
        with open("/sys/fs/cgroup/memory.current", encoding="ascii") as f:
            used = int(f.read())
        if limit != "max":
            free = min(free, max(int(limit) - used, 0))
    except (OSError, ValueError):
        pass
    return free


def environment(env: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Fields set by environment variables. `GALLEY_*` overrides `VLLM_*`, a flag overrides both.

    Raises:
        ConfigError: a variable's value cannot be read; names the variable.
    """
    given: dict[str, Any] = {}
    for variable, name, read in (
        ("VLLM_CPU_KVCACHE_SPACE", "kv_cache_memory_bytes", lambda v: int(float(v) * 2**30)),
        ("GALLEY_KV_CACHE_MEMORY_BYTES", "kv_cache_memory_bytes", str),
        ("GALLEY_WEIGHT_CACHE_SIZE", "weight_cache_size", str),
        ("OMP_NUM_THREADS", "num_threads", int),
        ("GALLEY_NUM_THREADS", "num_threads", int),
        ("VLLM_BATCH_INVARIANT", "batch_invariant", lambda v: bool(int(v))),
        ("GALLEY_BATCH_INVARIANT", "batch_invariant", lambda v: bool(int(v))),
    ):
        value = env.get(variable)
        if value:
            try:
                given[name] = read(value)
            except ValueError as e:
                raise ConfigError(f"{variable} has an unreadable value: {value!r}.") from e
    return given


def from_kwargs(
    given: Mapping[str, Any], usage: Usage, env: Mapping[str, str] = os.environ
) -> EngineConfig:
    """Read engine flags by their Python names.

    Raises:
        ConfigError: an unknown name (with the nearest known one), or an unreadable value.
    """
    flags = {f.name: (section, f) for section, cls in SECTIONS.items() for f in flags_of(cls)}
    values: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for name, value in {**environment(env), **given}.items():
        if name not in flags:
            refuse_unknown(name, value, list(flags))
            continue
        section, flag = flags[name]
        values[section][name] = coerce(flag, value)
    values["scheduler"] = by_use(values["scheduler"], usage)
    config = EngineConfig(**{section: cls(**values[section]) for section, cls in SECTIONS.items()})
    config = dataclasses.replace(config, scheduler=lowered(config.scheduler))
    check(config)
    check_variables(env, config.observability.fail_on_environ_validation)
    return config


def by_use(given: Mapping[str, Any], usage: Usage) -> dict[str, Any]:
    """Fill in the scheduler settings that depend on the use."""
    scheduler = dict(given)
    chunked = scheduler.get("enable_chunked_prefill", True)
    if scheduler.get("target_itl") is None:
        budgets = ("max_num_batched_tokens", "mixed_prefill_tokens")
        free = chunked and all(scheduler.get(name) is None for name in budgets)
        scheduler["target_itl"] = TARGET_ITL[usage] if free else 0.0
    scheduler["mixed_prefill_tokens"] = scheduler.get("mixed_prefill_tokens") or 0
    budget, seqs = DEFAULTS[usage]
    if scheduler.get("max_num_seqs") is None:
        tokens = scheduler.get("max_num_batched_tokens")
        scheduler["max_num_seqs"] = min(seqs, tokens) if tokens and tokens > 0 else seqs
    if scheduler.get("max_num_batched_tokens") is None and chunked:
        scheduler["max_num_batched_tokens"] = max(budget, scheduler["max_num_seqs"])
    return scheduler


def lowered(s: SchedulerConfig) -> SchedulerConfig:
    """Apply the settings that lower a limit. Raises ConfigError for one above its limit."""
    pairs = (
        ("max_num_active_seqs", s.max_num_active_seqs, "max_num_seqs", s.max_num_seqs),
        (
            *("max_num_scheduled_tokens", s.max_num_scheduled_tokens),
            *("max_num_batched_tokens", s.max_num_batched_tokens),
        ),
    )
    changes: dict[str, Any] = {}
    for name, limit, whole, most in pairs:
        if limit is None:
            continue
        if limit < 1 or (most is not None and limit > most):
            option, of = ("--" + n.replace("_", "-") for n in (name, whole))
            raise ConfigError(f"{option} must be in 1 … {most} ({of}), got {limit}.", field=name)
        changes[whole] = limit
    return dataclasses.replace(s, **changes)


def refuse_unknown(name: str, value: Any, known: list[str]) -> None:
    """Return for a vLLM flag that is a hint or asks for the default; else raise ConfigError."""
    verdict, sentence = disposition(name)
    if any(name == flag.name for flag in flags_of(ServerConfig)):
        verdict, sentence = (
            "refused",
            "it is a flag of `galley serve`, and there is no server here.",
        )
    if verdict == "hint":
        log.info("%s is accepted for compatibility with vLLM: %s", name, sentence)
        return
    if verdict == "refused" and not asks(name, value):
        return
    option = "--" + name.replace("_", "-")
    if verdict == "refused":
        raise ConfigError(f"{option} is not supported: {sentence}", field=name)
    near = difflib.get_close_matches(name, known, 1)
    hint = f" Did you mean --{near[0].replace('_', '-')}?" if near else ""
    raise ConfigError(f"unknown option {option}.{hint}", field=name)


def check(config: EngineConfig) -> None:
    """Raise ConfigError for values out of range, naming the flag and the limit."""
    for section, name, ok, want in _RANGES:
        value = getattr(getattr(config, section), name)
        if value is not None and not ok(value):
            option = "--" + name.replace("_", "-")
            raise ConfigError(f"{option} must be {want}, got {value}.", field=name)
    observing = config.observability
    for part in observing.collect_detailed_traces:
        if part not in ("model", "worker", "all"):
            raise ConfigError(
                f"--collect-detailed-traces takes model, worker and all; got {part!r}.",
                field="collect_detailed_traces",
            )
    if observing.collect_detailed_traces and not observing.otlp_traces_endpoint:
        raise ConfigError(
            "--collect-detailed-traces needs --otlp-traces-endpoint.",
            field="collect_detailed_traces",
        )
    check_buckets(observing.custom_histogram_buckets)
    check_profiler(observing.profiler_config)
    config.structured.settings  # noqa: B018 - raises for values that are not valid
    drafts = config.speculative.settings  # likewise
    if drafts is None and observing.per_request_spec_decode_metrics != "none":
        raise ConfigError(
            "--per-request-spec-decode-metrics needs --speculative-config: there are no drafts.",
            field="per_request_spec_decode_metrics",
        )
    s = config.scheduler
    if (s.max_num_batched_tokens or s.max_num_seqs or 0) < (s.max_num_seqs or 0):
        raise ConfigError(
            f"--max-num-batched-tokens ({s.max_num_batched_tokens}) must be at least "
            f"--max-num-seqs ({s.max_num_seqs}), so that a full batch has one token each.",
            field="max_num_batched_tokens",
        )
    cache = config.cache
    if cache.mamba_block_size is not None and (
        cache.mamba_block_size < 1 or cache.mamba_block_size % cache.block_size
    ):
        raise ConfigError(
            f"--mamba-block-size must be a positive multiple of --block-size ({cache.block_size}), "
            f"got {cache.mamba_block_size}.",
            field="mamba_block_size",
        )
    if s.mixed_prefill_tokens and not s.enable_chunked_prefill:
        raise ConfigError(
            f"--mixed-prefill-tokens {s.mixed_prefill_tokens} needs chunked prefill: without it a "
            "prompt runs in one step.",
            field="mixed_prefill_tokens",
        )
    kind, _, name = s.fairness_by.partition(":")
    if kind not in ("none", "api-key", "user", "address", "header") or (kind == "header") != bool(
        name
    ):
        raise ConfigError(
            f"--fairness-by must be none, api-key, user, address or header:NAME, got "
            f"{s.fairness_by!r}.",
            field="fairness_by",
        )
    if s.target_itl and not s.enable_chunked_prefill:
        raise ConfigError(
            f"--target-itl {s.target_itl:g} needs chunked prefill: without it a prompt runs in one "
            "step.",
            field="target_itl",
        )


def check_profiler(given: Mapping[str, Any]) -> None:
    """Raise ConfigError for a key that does not exist, and for a profiler without a folder."""
    for name in given:
        if name not in ("profiler", "torch_profiler_dir", "delay_iterations", "max_iterations"):
            raise ConfigError(
                f"--profiler-config has no key {name!r} here.", field="profiler_config"
            )
    if given.get("profiler") and not given.get("torch_profiler_dir"):
        raise ConfigError(
            "--profiler-config needs torch_profiler_dir, a folder.", field="profiler_config"
        )


_ONE_RANK = "1: this version runs on one rank"
#: Section, field, check of a value that is not None, and its description.
_RANGES: tuple[tuple[str, str, Callable[[Any], bool], str], ...] = (
    ("cache", "gpu_memory_utilization", lambda v: 0.0 < v <= 1.0, "in (0, 1]"),
    ("cache", "kv_cache_memory_bytes", lambda v: v > 0, "above 0"),
    ("cache", "memory_reserve", lambda v: v >= 0, "at least 0"),
    ("cache", "num_gpu_blocks_override", lambda v: v >= 2, "at least 2"),
    ("scheduler", "max_num_seqs", lambda v: 1 <= v <= 65_536, "in 1 … 65536"),
    ("scheduler", "max_num_batched_tokens", lambda v: 1 <= v <= 1 << 20, "in 1 … 1048576"),
    ("scheduler", "long_prefill_token_threshold", lambda v: v >= 0, "at least 0"),
    ("scheduler", "stream_interval", lambda v: v >= 1, "at least 1"),
    ("scheduler", "mixed_prefill_tokens", lambda v: v >= 0, "at least 0"),
    ("scheduler", "target_itl", lambda v: 0 <= v < 1e6, "milliseconds, 0 for no limit"),
    ("model", "max_model_len", lambda v: v == -1 or v >= 1, "at least 1, or -1 or auto"),
    ("model", "max_logprobs", lambda v: v >= -1, "at least -1"),
    ("observability", "kv_cache_metrics_sample", lambda v: 0.0 < v <= 1.0, "in (0, 1]"),
    ("device", "num_threads", lambda v: 1 <= v <= 1024, "in 1 … 1024"),
    ("parallel", "tensor_parallel_size", lambda v: v == 1, _ONE_RANK),
    ("parallel", "pipeline_parallel_size", lambda v: v == 1, _ONE_RANK),
    ("parallel", "data_parallel_size", lambda v: v == 1, _ONE_RANK),
)


def resolve(config: EngineConfig, machine: Machine, model_info: ModelInfo) -> EngineConfig:
    """Fill in the settings that depend on the machine and the model. Raises ConfigError.

    `max_model_len` -1 stays -1: the runner fits it to the memory.
    """
    model, s = config.model, config.scheduler
    length = model_info.max_position if model.max_model_len is None else model.max_model_len
    if length > model_info.max_position:
        raise ConfigError(
            f"--max-model-len {length} is longer than the {model_info.max_position} tokens that "
            "the model supports.",
            field="max_model_len",
        )
    bound = model_info.max_position if length == -1 else length
    budget = s.max_num_batched_tokens
    if model_info.is_encoder and budget is not None:
        budget = max(budget, bound)  # a prompt is computed in one step
    if not s.enable_chunked_prefill:
        budget = max(bound, s.max_num_seqs or 1) if budget is None else budget
        if budget < bound:
            raise ConfigError(
                f"--no-enable-chunked-prefill needs --max-num-batched-tokens of at least the "
                f"model length {bound}, got {budget}: a prompt must fit into one step. Raise it, "
                "lower --max-model-len, or leave chunked prefill on.",
                field="max_num_batched_tokens",
            )
    _check_quantization(model.quantization, model_info)
    check_adapters(config)
    runner = runner_of(model, model_info)
    pooling_settings(model, model_info)  # raises for values that are not valid
    names = model.served_model_name or (served_name(model),)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(
            model, max_model_len=length, served_model_name=names, runner=runner
        ),
        scheduler=dataclasses.replace(s, max_num_batched_tokens=budget),
        device=dataclasses.replace(
            config.device, num_threads=config.device.num_threads or machine.num_cores
        ),
    )


def _check_quantization(asked: str | None, model_info: ModelInfo) -> None:
    """Raises ConfigError where --quantization contradicts the checkpoint."""
    stored = model_info.quantization
    if asked is None or METHOD_ALIASES.get(asked, asked) == stored or model_info.online == asked:
        return
    if stored is None:
        message = "the checkpoint is not quantized"
        hint = f"While it is loaded, it can be quantized by {', '.join(ONLINE_METHODS)}."
    else:
        message = f"the checkpoint's is {stored}"
        hint = "Weights are used in its format: omit the flag, or name a checkpoint of that format."
    raise ConfigError(f"--quantization {asked}: {message}. {hint}", field="quantization")


def check_adapters(config: EngineConfig) -> None:
    """Raises ConfigError for limits of adapters that contradict each other."""
    lora = config.lora
    if lora.max_loras < 1:
        raise ConfigError(
            f"--max-loras must be at least 1, got {lora.max_loras}.", field="max_loras"
        )
    if lora.max_cpu_loras is not None and lora.max_cpu_loras < lora.max_loras:
        raise ConfigError(
            f"--max-cpu-loras {lora.max_cpu_loras} is less than --max-loras {lora.max_loras}: "
            "adapters of running requests are in memory.",
            field="max_cpu_loras",
        )


def served_name(model: ModelConfig) -> str:
    """The first name of the model in the API. Default: the `model` argument, or the built-in
    model's name.
    """
    return (*model.served_model_name, model.model or "SmolLM2-135M-Instruct")[0]
