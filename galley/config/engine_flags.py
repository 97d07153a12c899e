"""The engine's flags as types, for `LLM(**flags)`; made by `make docs`."""

from __future__ import annotations

from typing import Any, Literal, TypedDict


class EngineFlags(TypedDict, total=False):
    """Flags as `LLM` takes them; `galley serve --help=FLAG` explains each."""

    tokenizer: str | None
    tokenizer_mode: Literal["auto", "hf"]
    revision: str | None
    hf_config_path: str | None
    hf_overrides: dict[str, Any]
    hf_token: bool | str | None
    tokenizer_revision: str | None
    dtype: Literal["auto", "half", "float16", "bfloat16", "float", "float32"]
    quantization: str | None
    runner: Literal["auto", "generate", "pooling"]
    convert: Literal["auto", "none", "embed", "classify"]
    pooler_config: dict[str, Any]
    model_impl: Literal["auto", "galley", "vllm", "transformers"]
    trust_remote_code: bool
    quantized_activations: Literal["auto", "int8", "int16", "bf16"]
    max_model_len: int | str | None
    seed: int | str
    served_model_name: list[str] | tuple[str, ...]
    generation_config: str
    override_generation_config: dict[str, Any]
    enforce_eager: bool
    max_logprobs: int | str
    logprobs_mode: Literal["raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits"]
    skip_tokenizer_init: bool
    logits_processors: list[str] | tuple[str, ...]
    enable_prompt_embeds: bool
    load_format: str
    download_dir: str | None
    weight_cache: bool
    weight_cache_size: int | str | None
    block_size: int | str
    gpu_memory_utilization: float
    kv_cache_memory_bytes: int | str | None
    memory_reserve: int | str | None
    num_gpu_blocks_override: int | str | None
    enable_prefix_caching: bool
    kv_cache_dtype: str
    calculate_kv_scales: bool
    kv_cache_dtype_skip_layers: list[str] | tuple[str, ...]
    mamba_block_size: int | str | None
    keep_kv_cache: bool
    prefix_caching_hash_algo: Literal["sha256", "sha256_cbor", "xxhash", "xxhash_cbor"]
    max_num_batched_tokens: int | str | None
    max_num_seqs: int | str | None
    enable_chunked_prefill: bool
    long_prefill_token_threshold: int | str
    long_prefill_token_threshold_adaptive: bool
    mixed_prefill_tokens: int | str | None
    target_itl: float | None
    max_num_active_seqs: int | str | None
    max_num_scheduled_tokens: int | str | None
    stream_interval: int | str
    scheduling_policy: Literal["fcfs", "priority"]
    fairness_by: str
    tensor_parallel_size: int | str
    pipeline_parallel_size: int | str
    data_parallel_size: int | str
    distributed_executor_backend: Literal["uni", "mp", "loopback"] | None
    backend: str
    num_threads: int | str | None
    batch_invariant: bool
    disable_log_stats: bool
    otlp_traces_endpoint: str | None
    collect_detailed_traces: list[str] | tuple[str, ...]
    kv_cache_metrics: bool
    kv_cache_metrics_sample: float
    custom_histogram_buckets: dict[str, Any]
    enable_mfu_metrics: bool
    profiler_config: dict[str, Any]
    per_request_spec_decode_metrics: Literal["none", "summary", "detailed"]
    enable_logging_iteration_details: bool
    fail_on_environ_validation: bool
    structured_outputs_config: dict[str, Any]
    guided_decoding_backend: str | None
    speculative_config: dict[str, Any]
    spec_method: str | None
    spec_model: str | None
    spec_tokens: int | str | None
    enable_lora: bool
    max_loras: int | str
    max_lora_rank: int | str
    max_cpu_loras: int | str | None
    lora_dtype: Literal["auto", "bfloat16", "float16"]
    lora_target_modules: list[str] | tuple[str, ...]
