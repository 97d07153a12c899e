"""Families with experts, and with latent attention: lines of `families.FAMILIES`."""

from __future__ import annotations

from tests.models.checkpoints import ROPES, Case
from tests.models.remote import BAILING, Remote, phimoe_names

#: Of an intermediate size that is no multiple of 16.
EXPERTS = {"moe_intermediate_size": 40, "num_experts_per_tok": 2}

#: The best of four groups; the first layer is dense.
DEEPSEEK = {
    **EXPERTS,
    "n_routed_experts": 8,
    "n_group": 4,
    "topk_group": 2,
    "n_shared_experts": 2,
    "routed_scaling_factor": 1.5,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
}
GRANITE = {
    "num_local_experts": 6,
    "num_experts_per_tok": 3,
    "attention_multiplier": 0.3,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.7,
    "logits_scaling": 1.3,
}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

LATENT = {
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 16,
    "v_head_dim": 20,
    "num_key_value_heads": 4,
    "rope_parameters": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "mscale": 0.7,
        "mscale_all_dim": 1.3,
        "rope_theta": 10000.0,
    },
}

FULL, SLIDING = "full_attention", "sliding_attention"
#: Of the families that have its sizes in other keys.
BLOCKS = {"mlp_layer_types": ["dense", "sparse", "sparse"]}

FAMILIES: dict[str, Case] = {
    "afmoe": Case(
        "Afmoe",
        {
            **IDS,
            **EXPERTS,
            "head_dim": 16,
            "num_experts": 6,
            "num_shared_experts": 2,
            "num_dense_layers": 1,
            "route_scale": 1.7,
            "sliding_window": 9,
            "layer_types": [SLIDING, FULL, SLIDING],
            "mup_enabled": True,
        },
    ),
    "bailing-moe-v2": Case(
        "Glm4Moe",
        {
            **IDS,
            **DEEPSEEK,
            "head_dim": 32,
            "use_qk_norm": True,
            "attention_bias": True,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
            },
        },
        remote=BAILING,
    ),
    "cohere2-moe": Case(
        "Cohere2Moe",
        {
            **IDS,
            **BLOCKS,
            "head_dim": 16,
            "num_experts": 6,
            "num_shared_experts": 2,
            "prefix_dense_intermediate_size": 80,
            "sliding_window": 9,
            "layer_types": [FULL, SLIDING, FULL],
        },
    ),
    "exaone-moe": Case(
        "ExaoneMoe",
        {
            **IDS,
            **EXPERTS,
            **BLOCKS,
            "num_experts": 8,
            "num_shared_experts": 2,
            "n_group": 4,
            "topk_group": 2,
            "sliding_window": 9,
            "sliding_window_pattern": 2,
        },
    ),
    "flex-olmo": Case("FlexOlmo", {**IDS, "num_experts": 6, "num_experts_per_tok": 2}),
    "gemma4-experts": Case(
        "Gemma4",
        config_class="Gemma4TextConfig",
        config={
            **IDS,
            "head_dim": 16,
            "global_head_dim": 32,
            "sliding_window": 9,
            "layer_types": [SLIDING, FULL, SLIDING],
            "hidden_size_per_layer_input": 0,
            "enable_moe_block": True,
            "num_experts": 6,
            "top_k_experts": 2,
            "moe_intermediate_size": 40,
        },
    ),
    "glm4-moe-lite": Case("Glm4MoeLite", {**DEEPSEEK, **LATENT, **BLOCKS, **IDS}),
    "granite-moe-swa": Case(
        "GraniteMoeSWA",
        {
            **GRANITE,
            "shared_intermediate_size": 56,
            "sliding_window": 9,
            "layer_types": [FULL, SLIDING, SLIDING],
            "layer_rope_theta": [0, 5000.0, 20000.0],
        },
    ),
    "hunyuan-moe": Case("HunYuanMoEV1", {**IDS, "head_dim": 32, "num_experts": 6, "moe_topk": 2}),
    "mellum": Case(
        "Mellum",
        {
            **EXPERTS,
            **BLOCKS,
            "head_dim": 32,
            "num_experts": 6,
            "sliding_window": 9,
            "layer_types": [SLIDING, FULL, SLIDING],
            "rope_parameters": {FULL: ROPES["yarn"], SLIDING: ROPES["default"]},
        },
    ),
    "deepseek-v2": Case(
        "DeepseekV2",
        {
            **DEEPSEEK,
            **LATENT,
            "topk_method": "group_limited_greedy",
            "norm_topk_prob": False,
            "q_lora_rank": None,
        },
    ),
    "deepseek-v3": Case("DeepseekV3", {**DEEPSEEK, **LATENT, "attention_bias": True}),
    "deepseek-v3.2": Case(
        "DeepseekV32",
        {**DEEPSEEK, **LATENT, "index_n_heads": 2, "index_head_dim": 32, "index_topk": 256},
    ),
    "llama4": Case(
        "Llama4",
        {
            **IDS,
            "head_dim": 16,
            "num_local_experts": 5,
            "intermediate_size_mlp": 80,
            "interleave_moe_layer_step": 2,
            "no_rope_layers": [1, 1, 0],
            "attention_chunk_size": 24,
            "floor_scale": 20,
            "attn_scale": 0.3,
        },
        config_class="Llama4TextConfig",
    ),
    "minicpm3": Case(
        "MiniCPM3",
        {**LATENT, "scale_emb": 3, "scale_depth": 1.4, "dim_model_base": 48},
    ),
    "dots1": Case(
        "Dots1",
        {
            **DEEPSEEK,
            "sliding_window": 9,
            "max_window_layers": 1,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        },
    ),
    "ernie4.5-moe": Case(
        "Ernie4_5_Moe",
        {
            "moe_intermediate_size": 40,
            "moe_k": 2,
            "moe_num_experts": 6,
            "moe_layer_start_index": 1,
            "tie_word_embeddings": True,
        },
    ),
    "glm4-moe": Case(
        "Glm4Moe",
        {
            **DEEPSEEK,
            "attention_bias": True,
            "use_qk_norm": True,
            "head_dim": 32,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
            },
        },
    ),
    "gpt-oss": Case(
        "GptOss",
        {
            **IDS,
            "num_local_experts": 6,
            "num_experts_per_tok": 2,
            "head_dim": 16,
            "sliding_window": 9,
            "swiglu_limit": 0.8,
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 64,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
                "rope_theta": 150000.0,
            },
        },
    ),
    "granite-moe": Case("GraniteMoe", GRANITE),
    "granite-moe-shared": Case("GraniteMoeShared", {**GRANITE, "shared_intermediate_size": 56}),
    "minimax-m2": Case(
        "MiniMaxM2",
        {
            **IDS,
            "num_local_experts": 6,
            "num_experts_per_tok": 2,
            "head_dim": 32,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
            },
        },
    ),
    "mixtral": Case(
        "Mixtral", {"sliding_window": 21, "num_local_experts": 6, "num_experts_per_tok": 3}
    ),
    "phimoe": Case(
        "Phimoe",
        {
            **IDS,
            "num_local_experts": 6,
            "num_experts_per_tok": 2,
            "router_jitter_noise": 0.2,
            "attention_bias": True,
            "lm_head_bias": True,
            "sliding_window": 21,
            # Of sequences that are never long.
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.5, 1.0, 2.0, 4.0, 3.0, 1.25, 8.0, 16.0],
                "long_factor": [1.0] * 8,
                "short_mscale": 1.24,
                "long_mscale": 1.5,
                "original_max_position_embeddings": 256,
            },
        },
    ),
    "olmoe": Case("Olmoe", {**IDS, "num_experts": 6, "num_experts_per_tok": 2}),
    "qwen2-moe": Case(
        "Qwen2Moe",
        {
            **EXPERTS,
            "num_experts": 7,
            "shared_expert_intermediate_size": 56,
            "mlp_only_layers": [1],
            "norm_topk_prob": False,
        },
    ),
    "qwen3-moe": Case(
        "Qwen3Moe",
        {
            **EXPERTS,
            "head_dim": 32,
            "num_experts": 8,
            "decoder_sparse_step": 2,
            "norm_topk_prob": True,
        },
    ),
}

VARIANTS: dict[str, Case] = {
    "glm-moe-dsa": Case(
        "GlmMoeDsa",
        {
            **DEEPSEEK,
            **LATENT,
            **BLOCKS,
            **IDS,
            "index_n_heads": 2,
            "index_head_dim": 32,
            "index_topk": 256,
        },
    ),
    "cohere2-moe-sigmoid": Case(
        "Cohere2Moe",
        {
            **IDS,
            "head_dim": 16,
            "num_experts": 6,
            "num_shared_experts": 1,
            "shared_expert_combination_strategy": "sum",
            "expert_selection_fn": "sigmoid",
            "rms_norm_eps": 1e-6,
            "sliding_window": 9,
        },
    ),
    "solar-open": Case(
        "SolarOpen",
        {**DEEPSEEK, **IDS, "first_k_dense_replace": 0, "head_dim": 32, "attention_bias": True},
    ),
    "phimoe-published": Case(
        "Phimoe",
        {**IDS, "num_local_experts": 6},
        remote=Remote("PhiMoEForCausalLM", phimoe_names),
    ),
}
