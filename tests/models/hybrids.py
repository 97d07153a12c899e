"""Families with recurrent states (`families`)."""

from __future__ import annotations

from typing import Any

from tests.models.checkpoints import Case
from tests.models.rwkv7 import RWKV7ForCausalLM

MAMBA2: dict[str, Any] = {"head_dim": 16, "num_heads": 8, "state_size": 16, "n_groups": 2}

#: Of four Mamba-2 heads of 32 elements in two groups.
BAMBA: dict[str, Any] = {"mamba_n_heads": 4, "mamba_d_state": 24, "mamba_n_groups": 2}
FALCON_H1: dict[str, Any] = {
    **BAMBA,
    "mamba_d_ssm": 96,
    "mamba_norm_before_gate": False,
    "mamba_rms_norm": True,
    "embedding_multiplier": 1.7,
    "lm_head_multiplier": 0.3,
    "mlp_multipliers": [0.8, 0.7],
    "key_multiplier": 0.6,
    "attention_in_multiplier": 0.9,
    "attention_out_multiplier": 1.2,
    "ssm_in_multiplier": 1.1,
    "ssm_out_multiplier": 0.8,
    "ssm_multipliers": [0.7, 1.3, 0.9, 1.1, 0.6],
}
GRANITE_HYBRID: dict[str, Any] = {
    **BAMBA,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "num_local_experts": 0,
    "shared_intermediate_size": 80,
    "embedding_multiplier": 1.3,
    "logits_scaling": 1.7,
    "residual_multiplier": 0.7,
    "attention_multiplier": 0.3,
}
LFM2: dict[str, Any] = {
    "layer_types": ["conv", "full_attention", "conv"],
    "conv_bias": True,
    "block_multiple_of": 24,
}

NEMOTRON_H: dict[str, Any] = {
    "layers_block_type": ["linear_attention", "mlp", "full_attention", "linear_attention"],
    "head_dim": 16,
    "mamba_num_heads": 4,
    "mamba_head_dim": 24,
    "n_groups": 2,
    "ssm_state_size": 16,
    "use_bias": True,
}
NEMOTRON_EXPERTS: dict[str, Any] = {
    "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp", "moe"],
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "moe_intermediate_size": 40,
    "moe_shared_expert_intermediate_size": 56,
    "routed_scaling_factor": 1.5,
}
DELTA_NET: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "head_dim": 32,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 24,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}

EXPERTS: dict[str, Any] = {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 40,
    "shared_expert_intermediate_size": 56,
}

FAMILIES: dict[str, Case] = {
    "bamba": Case("Bamba", {**BAMBA, "attn_layer_indices": [1]}),
    "falcon-h1": Case("FalconH1", FALCON_H1),
    "falcon-mamba": Case("FalconMamba", {"state_size": 8}),
    "granite-hybrid": Case(
        "GraniteMoeHybrid",
        {**GRANITE_HYBRID, "num_local_experts": 5, "num_experts_per_tok": 2},
    ),
    "jamba": Case(
        "Jamba",
        {
            "attn_layer_period": 3,
            "attn_layer_offset": 1,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "mamba_dt_rank": 5,
        },
    ),
    "lfm2": Case("Lfm2", LFM2),
    "lfm2-moe": Case(
        "Lfm2Moe",
        {
            **EXPERTS,
            "layer_types": ["conv", "full_attention", "conv"],
            "num_dense_layers": 1,
            "norm_topk_prob": False,
            "routed_scaling_factor": 1.4,
        },
    ),
    "mamba": Case("Mamba", {"use_bias": True, "state_size": 12}),
    "mamba2": Case("Mamba2", MAMBA2),
    "kimi-linear": Case(
        "KimiLinear",
        {
            **EXPERTS,
            "num_experts_per_token": 2,
            "linear_head_dim": 20,
            "linear_num_heads": 3,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "num_expert_group": 3,
            "topk_group": 2,
            "kv_lora_rank": 32,
            "qk_nope_head_dim": 24,
            "qk_rope_head_dim": 16,
            "v_head_dim": 20,
            "num_key_value_heads": 4,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "nemotron-h": Case("NemotronH", NEMOTRON_H),
    "qwen3.5": Case("Qwen3_5", DELTA_NET, config_class="Qwen3_5TextConfig"),
    "rwkv7": Case("RWKV7", {}, build=RWKV7ForCausalLM),
    "qwen3.5-moe": Case(
        "Qwen3_5Moe", {**DELTA_NET, **EXPERTS}, config_class="Qwen3_5MoeTextConfig"
    ),
    "qwen3-next": Case("Qwen3Next", {**DELTA_NET, **EXPERTS, "mlp_only_layers": [1]}),
}

VARIANTS: dict[str, Case] = {
    "granite-hybrid-dense": Case("GraniteMoeHybrid", GRANITE_HYBRID),
    "nemotron-h-experts": Case("NemotronH", {**NEMOTRON_H, **NEMOTRON_EXPERTS}),
    "nemotron-h-latent-experts": Case(
        "NemotronH", {**NEMOTRON_H, **NEMOTRON_EXPERTS, "moe_latent_size": 48, "mlp_bias": True}
    ),
    "mamba2-limits": Case(
        "Mamba2",
        {**MAMBA2, "use_bias": True, "use_conv_bias": False, "n_groups": 1, "head_dim": 20}
        | {"expand": 5, "num_heads": 16, "state_size": 13, "time_step_limit": (0.5, 0.9)},
    ),
}
