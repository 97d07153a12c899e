"""Engine configuration: one frozen field = one flag of vLLM's name (dashes for underscores).

The docstring under a field is the flag's help. `resolve` (resolve.py) turns what the user gave
into a complete configuration, once; nothing here changes afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from galley.config.registries import BACKENDS, LOAD_FORMATS

DType = Literal["auto", "half", "float16", "bfloat16", "float", "float32"]
LogprobsMode = Literal["raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits"]
QuantizedActivations = Literal["auto", "int8", "int16"]


@dataclass(frozen=True)
class ModelConfig:
    """Model"""

    model: str = ""
    """Directory, .gguf file or hub name (`org/name`, `org/name:quant` for GGUF repositories).
    Without one, the built-in default model is served."""
    tokenizer: str | None = None
    """Directory or hub name of another tokenizer than the model's own."""
    tokenizer_mode: Literal["auto", "hf"] = "auto"
    """How the tokenizer is loaded. Galley uses the `tokenizers` library for all."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    hf_config_path: str | None = None
    """Directory or hub name whose config.json and generation_config.json are read in place of the
    model's own, as for a GGUF file whose metadata are incomplete."""
    hf_overrides: dict[str, object] = field(default_factory=dict)
    """JSON object of keys of config.json that win over the model's, before the model is built:
    `{"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}` for longer texts, say."""
    hf_token: bool | str | None = field(default=None, repr=False)
    """Token for the hub, for private and gated models; better in HF_TOKEN, where a list of
    processes does not show it. Alone: the one of `hf auth login`."""
    tokenizer_revision: str | None = None
    """Branch, tag or commit of a hub tokenizer."""
    dtype: DType = "auto"
    """Number format of weights and activations that are not quantised. `auto` takes the
    checkpoint's, in the nearest format that this machine computes."""
    quantization: str | None = None
    """What the checkpoint's quantisation must be (`gguf`, `compressed-tensors`); another one is an
    error. Default: whatever it is."""
    quantized_activations: QuantizedActivations = "auto"
    """Precision of activations where weights are integers with a scale per group: int16 is as near
    to the model as the weights are, int8 is up to 1.6 times as fast for many tokens at once. `auto`
    is int16, but int8 where weights have 4 bits and no minima (Q4_0): their own rounding is
    coarser."""
    max_model_len: int | None = None
    """Longest sequence, prompt and output together. Default: what the model supports. Accepts 4k,
    8K; -1 or auto: as long as the KV cache has room for."""
    seed: int = 0
    """Seed of the engine; requests without a seed of their own get one derived from it."""
    served_model_name: tuple[str, ...] = ()
    """Names under which the API knows the model; the first is used in metrics and answers."""
    generation_config: str = "auto"
    """`auto` reads defaults from the model's generation_config.json, `vllm` uses none, or a folder
    to read it from."""
    override_generation_config: dict[str, object] = field(default_factory=dict)
    """JSON object of sampling defaults that win over generation_config.json."""
    enforce_eager: bool = False
    """Run op by op instead of replaying captured steps (for debugging)."""
    max_logprobs: int = 20
    """Most logprobs that a request may ask for; -1 = the vocabulary."""
    logprobs_mode: LogprobsMode = "raw_logprobs"
    """What logprobs are: of the model's own distribution (raw) or of the one that was drawn from,
    after penalties, temperature, top_k, top_p … (processed; -inf for what was left out); as
    logprobs, or the logits themselves."""
    skip_tokenizer_init: bool = False
    """Load no tokenizer: prompts are token ids and outputs have no text."""


@dataclass(frozen=True)
class LoadConfig:
    """Load"""

    load_format: str = field(default="auto", metadata={"choices": ("auto", *LOAD_FORMATS)})
    """Format of the weights. `dummy` makes random ones, for tests."""
    download_dir: str | None = None
    """Folder for downloads; default: the hub's cache."""


@dataclass(frozen=True)
class CacheConfig:
    """KV cache"""

    block_size: Literal[16, 32, 64, 128] = 16
    """Tokens per KV block."""
    gpu_memory_utilization: float = 0.9
    """Share of the machine's available memory that weights and KV cache may take, in (0, 1]."""
    kv_cache_memory_bytes: int | None = None
    """Size of the KV cache in bytes (accepts 512m, 4G); wins over gpu-memory-utilization."""
    memory_reserve: int | None = None
    """Bytes of memory to leave free (accepts 512m, 2G): with less the KV cache stops growing and
    gives memory back, and requests wait. Default: 2 % of all, at least 64m, at most 1G. 0: never.
    """
    num_gpu_blocks_override: int | None = None
    """Number of KV blocks, for tests of preemption."""
    enable_prefix_caching: bool = True
    """Reuse the KV blocks of prompts that begin alike."""
    keep_kv_cache: bool = True
    """Keep a server's KV cache in memory that outlives the engine: when that is killed, requests go
    on without computing their prompts again. Needs prefix caching."""
    prefix_caching_hash_algo: Literal["sha256", "sha256_cbor", "xxhash", "xxhash_cbor"] = "sha256"
    """Hash of block contents. `sha256_cbor` is reproducible across languages."""


@dataclass(frozen=True)
class SchedulerConfig:
    """Scheduler"""

    max_num_batched_tokens: int | None = None
    """Most tokens computed in one step. Default by use: 2048 for a server, 4096 offline."""
    max_num_seqs: int | None = None
    """Most sequences in one step. Default by use: 128 for a server, 256 offline."""
    enable_chunked_prefill: bool = True
    """Split long prompts over steps, so that others go on."""
    long_prefill_token_threshold: int = 0
    """While other requests wait or run, a prompt gets at most this many tokens of a step.
    0 = no cap."""
    long_prefill_token_threshold_adaptive: bool = False
    """That cap is at least a fair share: the token budget over the requests that wait or run."""
    mixed_prefill_tokens: int | None = None
    """While sequences decode, prompts together get at most this many tokens of a step, so that a
    long prompt does not hold the others' next tokens up. 0 = no cap. Default: 512 for a server
    whose --max-num-batched-tokens is not given, else 0."""
    max_num_active_seqs: int | None = None
    """Most sequences that run at once, where that is to be less than --max-num-seqs."""
    max_num_scheduled_tokens: int | None = None
    """Most tokens that are scheduled in one step, where that is to be less than
    --max-num-batched-tokens."""
    stream_interval: int = 1
    """Tokens that a streamed event has at least; the first and the last are sent at once. More
    spare the front end work."""
    scheduling_policy: Literal["fcfs", "priority"] = "fcfs"
    """`fcfs` in order of arrival; `priority` smaller number first, then arrival."""


@dataclass(frozen=True)
class ParallelConfig:
    """Parallel"""

    tensor_parallel_size: int = 1
    """Ranks that share each layer."""
    pipeline_parallel_size: int = 1
    """Ranks that hold a stretch of layers each."""
    data_parallel_size: int = 1
    """Engines that serve side by side."""
    distributed_executor_backend: Literal["uni", "mp", "loopback"] | None = None
    """How a step reaches its workers. `mp` is `uni`: one rank computes in the engine's own process.
    `loopback` packs every plan into bytes (a test aid)."""


@dataclass(frozen=True)
class DeviceConfig:
    """Device"""

    backend: str = field(default="auto", metadata={"choices": ("auto", *BACKENDS)})
    """Who computes: `cpu` the native kernels, `reference` plain PyTorch (needs the torch extra)."""
    num_threads: int | None = None
    """Compute threads; default: one per core that this process may use."""
    batch_invariant: bool = False
    """Refuse to start where an answer might depend on what else is computed (as with
    VLLM_BATCH_INVARIANT=1). The native CPU kernels never let it."""


@dataclass(frozen=True)
class ObservabilityConfig:
    """Observability"""

    disable_log_stats: bool = False
    """Log no periodic statistics, and expose no metrics of the engine."""
    otlp_traces_endpoint: str | None = None
    """URL of an OpenTelemetry collector, to which a span of each request is sent: over gRPC, or
    over HTTP with OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf. Needs the extra `otel`."""
    collect_detailed_traces: tuple[str, ...] = ()
    """`model`, `worker` or `all`: further spans for a request's time in queue, prefill and decode,
    and its time in the model."""
    kv_cache_metrics: bool = False
    """Measure how long cached KV blocks live, lie idle before eviction, and between two uses."""
    kv_cache_metrics_sample: float = 0.01
    """Share of the blocks that --kv-cache-metrics follows, in (0, 1]."""
    custom_histogram_buckets: dict[str, list[float]] = field(default_factory=dict)
    """JSON object: upper bounds of the buckets of a family of histograms in place of vLLM's:
    request_latency, time_to_first_token, inter_token_latency, iteration_tokens, request_params_n,
    request_num_preemptions, request_tokens, kv_cache_residency."""
    enable_mfu_metrics: bool = False
    """Estimate floating point operations and bytes moved of each step."""
    profiler_config: dict[str, object] = field(default_factory=dict)
    """JSON object; with `profiler` and `torch_profiler_dir` set, /start_profile and /stop_profile
    (of `LLM`: start_profile, stop_profile) write what the steps between them did into that folder,
    for ui.perfetto.dev. Also `delay_iterations` and `max_iterations`. Not for production."""
    enable_logging_iteration_details: bool = False
    """Log what each step computes, and how long it takes."""
    fail_on_environ_validation: bool = False
    """Refuse to start where a VLLM_ or GALLEY_ variable is set that does not exist, in place of a
    warning."""


@dataclass(frozen=True)
class EngineConfig:
    """All that an engine needs to know."""

    model: ModelConfig = field(default_factory=ModelConfig)
    load: LoadConfig = field(default_factory=LoadConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)
    observability: ObservabilityConfig = field(default_factory=ObservabilityConfig)
