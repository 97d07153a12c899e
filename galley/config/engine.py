"""Engine configuration: each frozen field is a flag with vLLM's name (dashes for underscores).

The docstring under a field is the flag's help. `resolve` (resolve.py) completes the user's settings
once; the configuration does not change afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from galley.config.model_info import ModelImpl
from galley.config.registries import (
    LOAD_FORMAT_ALIASES,
    LOAD_FORMATS,
    PROPOSERS,
    REFUSED_LOAD_FORMATS,
)
from galley.config.speculative import ALIASES, SpeculativeSettings, speculative_settings
from galley.config.structured import StructuredOutputsSettings, structured_outputs_settings

DType = Literal["auto", "half", "float16", "bfloat16", "float", "float32"]
LogprobsMode = Literal["raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits"]
KVCacheDType = Literal[
    "auto",
    "float32",
    "bfloat16",
    "fp8",
    "fp8_e4m3",
    "fp8_e5m2",
    "fp8_per_token_head",
    "int8_per_token_head",
]
QuantizedActivations = Literal["auto", "int8", "int16", "bf16"]


@dataclass(frozen=True)
class ModelConfig:
    """Model

    Which model, and how its numbers, length and defaults are taken.
    """

    model: str = ""
    """Directory, .gguf file or hub name (`org/name`, `org/name:quant` for GGUF repositories).
    Without one, the built-in default model is served."""
    tokenizer: str | None = None
    """Directory or hub name of a tokenizer to use instead of the model's own."""
    tokenizer_mode: Literal["auto", "hf"] = "auto"
    """How the tokenizer is loaded. Galley uses the `tokenizers` library for all."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    hf_config_path: str | None = None
    """Directory or hub name whose config.json and generation_config.json are read instead of
    the model's own, for example for a GGUF file with incomplete metadata."""
    hf_overrides: dict[str, object] = field(default_factory=dict)
    """JSON object of config.json keys that override the model's before the model is built, for
    example `{"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}` for longer contexts."""
    hf_token: bool | str | None = field(default=None, repr=False)
    """Token for private and gated models of the hub. Prefer HF_TOKEN, which `ps` does not show. The
    flag without a value uses the token of `hf auth login`."""
    tokenizer_revision: str | None = None
    """Branch, tag or commit of a hub tokenizer."""
    dtype: DType = "auto"
    """Number format of unquantised weights and activations. `auto` uses the checkpoint's format, or
    the nearest one that this machine supports."""
    quantization: str | None = None
    """Quantisation of a 16-bit checkpoint while it is loaded: `fp8`, `fp8_per_channel`,
    `fp8_per_tensor`, `int8`, `int8_per_channel_weight_only`, `experts_int8`, `int4`, `bitsandbytes`
    (NF4). Of a quantised one the required method (`awq`, `gguf`, `gptq` …): any other is an error.
    Default: the checkpoint's own."""
    runner: Literal["auto", "generate", "pooling"] = "auto"
    """Use of the model: `generate` text, or `pooling`: vectors of prompts. `auto` pools
    with --convert embed, for encoders, and for checkpoints of sentence-transformers."""
    convert: Literal["auto", "none", "embed", "classify"] = "auto"
    """`embed` turns a model that generates text into one that embeds; `auto` does so with --runner
    pooling."""
    pooler_config: dict[str, object] = field(default_factory=dict)
    """JSON object (or dotted keys) with --runner pooling: `pooling_type` (CLS, LAST, MEAN) and
    `use_activation` (normalise vectors). Default: the checkpoint's own; without one LAST, for
    encoders CLS, and true."""
    model_impl: ModelImpl = "auto"
    """Implementation of the model: `galley`, or the `transformers` library on Galley's KV cache,
    which is slower and needs torch. `auto` takes transformers for architectures that Galley does
    not implement; `vllm` is another name of `galley`."""
    trust_remote_code: bool = False
    """Let the transformers implementation run Python code that the checkpoint brings. Galley's own
    implementations never run any."""
    quantized_activations: QuantizedActivations = "auto"
    """Precision of activations for quantised weights, unless their format prescribes int8 (W8A8).
    int16 is as accurate as the weights; int8 is up to 1.6 times as fast for many tokens at once.
    bf16 (needs AMX): GGUF weights are multiplied with bfloat16, up to twice as fast for many
    tokens. `auto` is bf16 for bfloat16 models of K types (as Q4_K) larger than the largest cache;
    else int16, except int8 for 4-bit GGUF weights without minima (Q4_0), whose own rounding error
    is larger."""
    max_model_len: int | None = None
    """Maximum sequence length, prompt and output together. Default: the model's maximum. Accepts
    4k, 8K; -1 or auto: as long as fits into the KV cache."""
    seed: int = 0
    """Seed of the engine; requests without a seed of their own get one derived from it."""
    served_model_name: tuple[str, ...] = ()
    """Names of the model in the API; the first is used in metrics and responses."""
    generation_config: str = "auto"
    """`auto` reads defaults from the model's generation_config.json, `vllm` uses none; anything
    else is a folder to read it from."""
    override_generation_config: dict[str, object] = field(default_factory=dict)
    """JSON object of sampling defaults that override generation_config.json."""
    enforce_eager: bool = False
    """Run op by op instead of replaying captured steps (for debugging)."""
    max_logprobs: int = 20
    """Maximum number of logprobs per token of a request; -1 = the vocabulary size."""
    logprobs_mode: LogprobsMode = "raw_logprobs"
    """Distribution that logprobs come from: the model's own (raw) or the one that is sampled from,
    after penalties, temperature, top_k, top_p … (processed; -inf for excluded tokens); returned as
    logprobs or as logits."""
    skip_tokenizer_init: bool = False
    """Load no tokenizer: prompts are token ids and outputs have no text."""
    logits_processors: tuple[Any, ...] = ()
    """Classes that change the logits of each step before tokens are sampled: `module:Class` (or,
    of `LLM`, the classes themselves), subclasses of `galley.LogitsProcessor`. Those of installed
    entry points `vllm.logits_processors` come first."""
    enable_prompt_embeds: bool = False
    """Accept embedding rows as prompts: `prompt_embeds` of completions and of `LLM`, parts of type
    `prompt_embeds` in chats. A client can put the model in any state with them: trusted clients
    only."""


@dataclass(frozen=True)
class LoadConfig:
    """Load

    Where weights come from, and where packed ones are kept.
    """

    load_format: str = field(
        default="auto",
        metadata={
            "choices": ("auto", *LOAD_FORMATS, *LOAD_FORMAT_ALIASES),
            "refused": REFUSED_LOAD_FORMATS,
        },
    )
    """Format of the weights. `auto` (also `hf`) prefers safetensors; `pt` (also `npcache`) reads
    PyTorch files (*.bin, *.pt) without running their pickles; `mistral` reads
    consolidated*.safetensors; `dummy` generates random ones, for tests. `runai_streamer`,
    `fastsafetensors` and `instanttensor` read safetensors as all files are read here: mapped, by
    several threads."""
    download_dir: str | None = None
    """Folder for downloads; default: the hub's cache."""
    weight_cache: bool = True
    """Write packed weights to disk at a model's first start and map them at later ones."""
    weight_cache_size: int | None = None
    """Bytes that all packed weights on disk may take (accepts 512m, 40G); those used least recently
    are removed first. Default: half of the disk."""


#: Default of `CacheConfig.mamba_block_size`.
STATE_INTERVAL = 512


@dataclass(frozen=True)
class CacheConfig:
    """KV cache

    Memory for the tokens of running and earlier sequences.
    """

    block_size: Literal[16, 32, 64, 128] = 16
    """Tokens per KV block."""
    gpu_memory_utilization: float = 0.9
    """Fraction of the machine's available memory for weights and KV cache, in (0, 1]."""
    kv_cache_memory_bytes: int | None = None
    """Size of the KV cache in bytes (accepts 512m, 4G); overrides --gpu-memory-utilization."""
    memory_reserve: int | None = None
    """Bytes of memory to leave free (accepts 512m, 2G). With less free, the KV cache stops growing
    and releases memory, and requests wait. Default: 2 % of the total, at least 64m, at most 1G.
    0: off."""
    num_gpu_blocks_override: int | None = None
    """Number of KV blocks, for tests of preemption."""
    enable_prefix_caching: bool = True
    """Reuse the KV blocks of prompts with a common prefix."""
    kv_cache_dtype: KVCacheDType = "auto"
    """Number format of the KV cache. `auto`: as the checkpoint declares, else the model's own.
    `fp8` is fp8_e4m3, with the checkpoint's scales (1 without any). Of the formats `per_token_head`
    each token has scales of its own, one for each head."""
    calculate_kv_scales: bool = False
    """With an FP8 KV cache: scales are calculated, for each token and head, instead of those of the
    checkpoint."""
    kv_cache_dtype_skip_layers: tuple[str, ...] = ()
    """Layers whose KV cache keeps the model's own number format, whatever --kv-cache-dtype says:
    their numbers, from 0, or `sliding_window` for those with a window."""
    mamba_block_size: int | None = None
    """Tokens between two recurrent states that prefix caching keeps; a multiple of --block-size.
    Default: 512. Has no effect on models without recurrent states."""
    keep_kv_cache: bool = True
    """Keep a server's KV cache in memory that outlives the engine: after the engine is killed,
    requests continue without recomputing their prompts. Needs prefix caching."""
    prefix_caching_hash_algo: Literal["sha256", "sha256_cbor", "xxhash", "xxhash_cbor"] = "sha256"
    """Hash of block contents. `sha256_cbor` is reproducible across languages."""

    @property
    def state_interval(self) -> int:
        """Tokens between two kept states; 0 without prefix caching."""
        if not self.enable_prefix_caching:
            return 0
        return self.mamba_block_size or STATE_INTERVAL


@dataclass(frozen=True)
class SchedulerConfig:
    """Scheduler

    How much a step computes, and which requests go first.
    """

    max_num_batched_tokens: int | None = None
    """Maximum tokens per step. Default by use: 2048 for a server, 4096 offline. Of an encoder
    never below --max-model-len, because a prompt is one step."""
    max_num_seqs: int | None = None
    """Maximum sequences per step. Default by use: 128 for a server, 256 offline."""
    enable_chunked_prefill: bool = True
    """Split long prompts over several steps, so that other requests keep decoding."""
    long_prefill_token_threshold: int = 0
    """Maximum tokens per step of one prompt while other requests wait or run. 0 = no limit."""
    long_prefill_token_threshold_adaptive: bool = False
    """Raise that limit to a fair share: the token budget divided by the requests that wait or run.
    """
    mixed_prefill_tokens: int | None = None
    """Maximum tokens per step of all prompts together while other sequences decode, so that a long
    prompt does not delay their next tokens. 0 = no limit. See --target-itl for the default."""
    target_itl: float | None = None
    """Milliseconds that a step may take while some sequences decode and prompts are computed: it
    gets as many tokens of prompts as fit, by the time of the last steps, and short prompts overtake
    a long one. At least 2.5 times a step without prompts; up to three times as long where several
    prompts wait beside few sequences. 0 = no limit. Default: 60 for a server without
    --max-num-batched-tokens and --mixed-prefill-tokens, else 0."""
    max_num_active_seqs: int | None = None
    """Maximum running sequences, if lower than --max-num-seqs."""
    max_num_scheduled_tokens: int | None = None
    """Maximum tokens scheduled per step, if lower than --max-num-batched-tokens."""
    stream_interval: int = 1
    """Minimum tokens per streamed event; the first and the last are sent at once. Higher values
    reduce the front end's work."""
    scheduling_policy: Literal["fcfs", "priority"] = "fcfs"
    """`fcfs`: in order of arrival. `priority`: lower number first, then arrival."""
    fairness_by: str = "none"
    """Admit requests of the client first that was served the fewest tokens, within a
    priority. What tells clients apart: `api-key`, `user` (the request's field), `address`, or
    `header:NAME`. `none`: all requests are one client's."""


@dataclass(frozen=True)
class ParallelConfig:
    """Parallel

    Ranks and engines; this version runs one of each.
    """

    tensor_parallel_size: int = 1
    """Ranks that share each layer."""
    pipeline_parallel_size: int = 1
    """Ranks that hold consecutive layers each."""
    data_parallel_size: int = 1
    """Engines that serve in parallel."""
    distributed_executor_backend: Literal["uni", "mp", "loopback"] | None = None
    """Executor of a step. `mp` is `uni` here: one rank computes in the engine's own process.
    `loopback` serialises every plan (for tests)."""


@dataclass(frozen=True)
class DeviceConfig:
    """Device

    Backend and threads of the computation.
    """

    backend: str = "auto"
    """`cpu` (`auto`): the native kernels. `reference`: plain PyTorch (needs the torch extra). Or
    the name of an installed plugin: an entry point of the group `galley.backends`."""
    num_threads: int | None = None
    """Compute threads. Default: one per core that this process may use."""
    batch_invariant: bool = False
    """Refuse to start if an answer might depend on the rest of the batch (as with
    VLLM_BATCH_INVARIANT=1). The native CPU kernels are always invariant."""


@dataclass(frozen=True)
class ObservabilityConfig:
    """Observability

    Statistics, metrics, traces and profiles.
    """

    disable_log_stats: bool = False
    """Log no periodic statistics and expose no engine metrics."""
    otlp_traces_endpoint: str | None = None
    """URL of an OpenTelemetry collector, that receives a span for each request: over gRPC, or
    over HTTP with OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf. Needs the extra `otel`."""
    collect_detailed_traces: tuple[str, ...] = ()
    """`model`, `worker` or `all`: additional spans for a request's time in queue, prefill and
    decode, and its time in the model."""
    kv_cache_metrics: bool = False
    """Measure the lifetime of cached KV blocks, their idle time before eviction and between uses.
    """
    kv_cache_metrics_sample: float = 0.01
    """Fraction of blocks that --kv-cache-metrics samples, in (0, 1]."""
    custom_histogram_buckets: dict[str, list[float]] = field(default_factory=dict)
    """JSON object: upper bounds of the buckets of a histogram family, instead of vLLM's:
    request_latency, time_to_first_token, inter_token_latency, iteration_tokens, request_params_n,
    request_num_preemptions, request_tokens, kv_cache_residency."""
    enable_mfu_metrics: bool = False
    """Estimate the floating-point operations and bytes moved of each step."""
    profiler_config: dict[str, object] = field(default_factory=dict)
    """JSON object; with `profiler` and `torch_profiler_dir` set, /start_profile and /stop_profile
    (of `LLM`: start_profile, stop_profile) write a trace of the steps between them into that
    folder, for ui.perfetto.dev. Also `delay_iterations` and `max_iterations`. Not for production.
    """
    per_request_spec_decode_metrics: Literal["none", "summary", "detailed"] = "none"
    """Report with each answer how its drafts fared: their numbers (`metrics.speculative_decoding`,
    in Python `spec_decode_metrics`), and with `detailed` those of each step."""
    enable_logging_iteration_details: bool = False
    """Log the contents and duration of each step."""
    fail_on_environ_validation: bool = False
    """Refuse to start, instead of warning, if an unknown VLLM_ or GALLEY_ variable is set."""


@dataclass(frozen=True)
class StructuredOutputsConfig:
    """Structured outputs

    How JSON schemas, grammars and other constraints are enforced.
    """

    structured_outputs_config: dict[str, object] = field(default_factory=dict)
    """JSON object (or dotted keys): `backend` (auto, guidance, xgrammar), `disable_any_whitespace`,
    `disable_additional_properties`, `enable_in_reasoning`. xgrammar needs the extra `xgrammar`."""
    guided_decoding_backend: str | None = None
    """Older name of --structured-outputs-config.backend."""

    @property
    def settings(self) -> StructuredOutputsSettings:
        """Raises ConfigError naming the key."""
        given = dict(self.structured_outputs_config)
        if self.guided_decoding_backend is not None:
            given.setdefault("backend", self.guided_decoding_backend)
        return structured_outputs_settings(given)


@dataclass(frozen=True)
class SpeculativeConfig:
    """Speculative decoding

    Drafts that make one step yield several tokens.
    """

    speculative_config: dict[str, object] = field(default_factory=dict)
    """JSON object (or dotted keys) about drafts, which change how fast answers come and nothing
    else: `method` (ngram, suffix, draft_model, medusa, mlp_speculator, eagle, eagle3, mtp,
    custom_class, none), `model` of a drafter or of heads, `num_speculative_tokens`,
    `draft_length` (adaptive, fixed), keys of the method. Default: no drafts."""
    spec_method: str | None = field(
        default=None,
        metadata={"choices": ("none", *PROPOSERS, *(a for a in ALIASES if a[0] != "["))},
    )
    """Short for --speculative-config.method; `none` switches drafts off."""
    spec_model: str | None = None
    """Short for --speculative-config.model."""
    spec_tokens: int | None = None
    """Short for --speculative-config.num_speculative_tokens: most drafts of a sequence and step."""

    @property
    def settings(self) -> SpeculativeSettings | None:
        """None: no drafts. Raises ConfigError naming the key."""
        return speculative_settings(
            self.speculative_config, self.spec_method, self.spec_model, self.spec_tokens
        )


@dataclass(frozen=True)
class LoRAConfig:
    """LoRA adapters

    Adapters on the model, and how many.
    """

    enable_lora: bool = False
    """Serve LoRA adapters, each request with its own, all on one copy of the model."""
    max_loras: int = 1
    """Most adapters among the requests that run at once. Requests for more of them wait."""
    max_lora_rank: Literal[1, 8, 16, 32, 64, 128, 256, 320, 512] = 16
    """Largest rank of an adapter. One of a larger rank is refused when it is loaded."""
    max_cpu_loras: int | None = None
    """Most adapters in memory; the one that has not been used for longest is dropped, and read
    again when it is needed. At least --max-loras, which is the default."""
    lora_dtype: Literal["auto", "bfloat16", "float16"] = "auto"
    """Number format of adapters. `auto`: that of the model's activations. float16 is kept in
    float32, which holds it exactly."""
    lora_target_modules: tuple[str, ...] = ()
    """Last names of the modules that adapters may add to (`o_proj`), all by default. What an
    adapter has of other modules is not used, and takes no memory."""


@dataclass(frozen=True)
class EngineConfig:
    """Complete configuration of an engine."""

    model: ModelConfig = field(default_factory=ModelConfig)
    load: LoadConfig = field(default_factory=LoadConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)
    observability: ObservabilityConfig = field(default_factory=ObservabilityConfig)
    structured: StructuredOutputsConfig = field(default_factory=StructuredOutputsConfig)
    speculative: SpeculativeConfig = field(default_factory=SpeculativeConfig)
    lora: LoRAConfig = field(default_factory=LoRAConfig)
