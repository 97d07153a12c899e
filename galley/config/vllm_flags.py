"""vLLM 0.32's serve flags that Galley has no field for: what becomes of each.

A flag that only tunes how vLLM gets to the same answer is a *hint*: accepted with a one-line
notice. A flag that asks for something Galley does not do is *refused* with a sentence.
"""

from __future__ import annotations

from typing import Literal

Verdict = Literal["hint", "refused", "unknown"]

_HINTS = """
aggregate_engine_logging gdn_prefill_backend kda_prefill_backend
kda_decode_backend enable_flash_late_interaction code_revision enable_cumem_allocator
use_fp64_gumbel disable_cascade_attn use_tqdm_on_load pt_load_map_location
safetensors_load_strategy safetensors_prefetch_num_threads safetensors_prefetch_block_size
model_loader_extra_config ignore_patterns mamba_backend mamba_ssu_algorithm
enable_mamba_cache_stochastic_rounding mamba_cache_philox_rounds distributed_timeout_seconds
cpu_distributed_timeout_seconds numa_bind numa_bind_nodes numa_bind_cpus
enable_batch_sharded_sampling all2all_backend enable_shm_tensor_arena dp_sync_interval
disable_nccl_for_dp_synchronization expert_placement_strategy max_parallel_loading_workers
ray_workers_use_nsight disable_custom_all_reduce kv_sharing_fast_prefill swa_bounded_replay
mamba_cache_dtype mamba_ssm_cache_dtype mamba_block_size mamba_cache_mode replayssm_buffer_len
enable_mamba_shared_prefix_checkpoint use_replayssm kv_offloading_backend offload_backend
offload_num_in_group offload_prefetch_step mm_processor_cache_gb mm_processor_cache_type
mm_shm_cache_max_object_size_mb skip_mm_profiling mm_tensor_ipc mm_processor_device
mm_ipc_gpu_memory_gb mm_device_do_normalize mm_encoder_attn_backend mm_encoder_tp_mode
video_pruning_method limit_mm_per_prompt language_model_only jit_monitor_mode
jit_monitor_verbose cudagraph_metrics scheduler_reserve_full_isl prefill_schedule_interval
disable_chunked_mm_input disable_hybrid_kv_cache_manager async_scheduling
cudagraph_capture_sizes max_cudagraph_capture_size ir_op_priority enable_flashinfer_autotune
moe_backend linear_backend sparse_indexer_topk_backend compilation_config kernel_config
optimization_level performance_mode enable_log_deltas renderer_num_workers dcp_comm_backend
dcp_q_replicate dcp_kv_cache_interleave_size cp_kv_cache_interleave_size
show_hidden_metrics_for_version mm_hasher_algorithm config_format
ec_manager_config aux_output_config engram_config trust_remote_code enable_sleep_mode
additional_config sleep_mode_offload_cudagraph sleep_preserve_parameter_names
enable_nccl_comm_suspend
"""

_REFUSED: dict[str, str] = {
    "structured output, tools and reasoning are not supported yet.": """
        enable_auto_tool_choice exclude_tools_when_tool_choice_none tool_call_parser
        tool_parser_plugin tool_strict_level tool_server reasoning_parser
        reasoning_parser_plugin structured_outputs_config reasoning_config
        anthropic_disabled_thinking_effort cohere_is_reasoning_model cohere_format""",
    "LoRA adapters are not supported yet.": """
        lora_modules enable_lora max_loras max_lora_rank lora_dtype enable_tower_connector_lora
        max_cpu_loras fully_sharded_loras lora_target_modules default_mm_loras
        specialize_active_lora enable_mixed_moe_lora_format enable_moe_shared_loras
        max_lora_cls_labels""",
    "only text models are supported yet.": """
        trust_request_mm_kwargs allowed_local_media_path allowed_media_domains enable_mm_embeds
        media_io_kwargs mm_processor_kwargs mm_encoder_only mm_encoder_attn_dtype
        mm_encoder_fp8_scale_path mm_encoder_fp8_scale_save_path
        mm_encoder_fp8_scale_save_margin interleave_mm_strings video_pruning_rate
        enable_prompt_embeds""",
    "only text generation is supported yet (no pooling, embedding or classification).": """
        runner convert pooler_config io_processor_plugin""",
    "speculative decoding is not supported yet.": """
        speculative_config spec_method spec_model spec_tokens per_request_spec_decode_metrics""",
    "this version runs one engine on one host.": """
        headless nnodes node_rank master_addr master_port data_parallel_rank
        data_parallel_start_rank data_parallel_size_local data_parallel_address
        data_parallel_rpc_port data_parallel_backend data_parallel_hybrid_lb
        data_parallel_external_lb data_parallel_multi_port_external_lb enable_expert_parallel
        decode_context_parallel_size prefill_context_parallel_size enable_hc_sp
        enable_ep_weight_filter enable_dbo ubatch_size enable_elastic_ep elastic_ep_max_dp_size
        dbo_decode_token_threshold dbo_prefill_token_threshold enable_eplb eplb_config
        worker_cls worker_extension_cls device_ids data_parallel_supervisor_port
        dp_supervisor_probe_interval_s dp_supervisor_probe_timeout_s
        dp_supervisor_probe_failure_threshold enable_scale_out tokens_only grpc grpc_port""",
    "KV transfer, offload and events are not supported yet.": """
        kv_transfer_config kv_events_config ec_transfer_config kv_offloading_size cpu_offload_gb
        cpu_offload_params offload_group_size offload_params""",
    "weights are taken in the checkpoint's own format.": """
        quantization_config allow_deprecated_quantization""",
    "the KV cache has the format of the model's activations.": """
        kv_cache_dtype kv_cache_dtype_skip_layers""",
    "the native CPU kernels are the only attention backend; choose with --backend.": """
        attention_backend attention_config""",
    "weight updates are not supported yet.": "weight_transfer_config",
    "profiling is not supported yet.": """
        enable_layerwise_nvtx_tracing enable_trace_replay""",
    "this version does not have it yet.": """
        enable_return_routed_experts return_sampling_mask disable_sliding_window model_impl
        watermark watermark_config prefix_cache_retention_interval prefix_match_unit
        diffusion_config""",
    "its classes work on torch tensors and on vLLM's own batch, of which there is neither here; "
    "callables in SamplingParams.logits_processors act in LLM.": "logits_processors",
    "no scripts of other projects are shipped; /openapi.json needs none.": "enable_offline_docs",
    "it names Python classes written for vLLM's insides.": "scheduler_cls model_class_overrides",
    "the engine restarts by itself; there is nothing to switch on.": """
        enable_fault_tolerance fault_tolerance_config""",
}

#: Values of refused flags that ask for what holds anyway. Of any: none, false, 0, auto.
HOLDS: dict[str, tuple[str, ...]] = {
    "attention_backend": ("CPU_ATTN", "TORCH_SDPA"),
    "convert": ("none",),
    "data_parallel_backend": ("mp",),
    "data_parallel_size_local": ("1",),
    "decode_context_parallel_size": ("1",),
    "model_impl": ("vllm",),
    "nnodes": ("1",),
    "per_request_spec_decode_metrics": ("none",),
    "prefill_context_parallel_size": ("1",),
    "runner": ("generate",),
}
_NOTHING = ("", "none", "null", "false", "auto", "0", "0.0", "{}", "[]")


def _table() -> dict[str, tuple[Verdict, str]]:
    table: dict[str, tuple[Verdict, str]] = {}
    for name in _HINTS.split():
        table[name] = ("hint", "it only tunes how vLLM reaches the same answer; it has no effect.")
    for sentence, names in _REFUSED.items():
        for name in names.split():
            table[name] = ("refused", sentence)
    return table


TABLE = _table()


def asks(name: str, value: object) -> bool:
    """Whether `value` of the refused flag `name` asks for something that does not hold anyway."""
    text = str(value)
    return bool(value) and text.lower() not in _NOTHING and text not in HOLDS.get(name, ())


def disposition(name: str) -> tuple[Verdict, str]:
    """What becomes of the vLLM flag `name` (underscores): the verdict and its sentence."""
    if name in TABLE:
        return TABLE[name]
    return "unknown", ""
