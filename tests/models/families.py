"""One tiny checkpoint of every family of the registry, its peculiarities switched on.

A window is shorter than the prompts, a soft cap bites, a multiplier is no power of two.
"""

from __future__ import annotations

from tests.models import hybrids, mixtures
from tests.models.checkpoints import ROPES, Case
from tests.models.remote import DECILM, EXAONE, INTERNLM2, Remote, fused, with_alibi

#: Sizes by the names of GPT-2's and GPT-J's configs.
GPT = {
    "n_embd": 64,
    "n_head": 4,
    "n_layer": 3,
    "n_positions": 256,
    "n_inner": 96,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
#: Heads that are no power of two, for the slopes of ALiBi.
MPT = {
    "n_layers": 3,
    "n_heads": 6,
    "num_attention_heads": 6,
    "num_hidden_layers": 3,
    "d_model": 48,
    "hidden_size": 48,
    "max_seq_len": 256,
    "attn_config": {"clip_qkv": 1.5, "alibi_bias_max": 8},
}
BLOOM = {"n_layer": 3, "n_head": 6, "num_attention_heads": 6, "hidden_size": 48}
FALCON = {"ffn_hidden_size": 96, "bos_token_id": 1, "eos_token_id": 2}
NEW_FALCON = {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}

EXAONE_KEYS = {"num_layers": 3, "num_hidden_layers": None, "activation_function": "silu"}
INTERNLM2_FAMILY = Remote(
    "InternLM2ForCausalLM",
    lambda state: INTERNLM2(fused("wqkv", groups=2)(state)),
    {"bias": True, "attention_bias": None},
)
#: Its configs name the longest sequence alone.
BAICHUAN_13B = Remote(
    "BaichuanForCausalLM",
    fused("W_pack"),
    {"model_max_length": 256, "max_position_embeddings": None, "num_key_value_heads": None},
    with_alibi,
)
BAICHUAN_7B = Remote("BaiChuanForCausalLM", fused("W_pack"))
#: Transformers' Granite computes the same with its multipliers.
MINICPM = {
    "embedding_multiplier": 12.0,
    "residual_multiplier": 1.4 / 3**0.5,
    "attention_multiplier": 16**-0.5,
    "logits_scaling": 4.0,
    "tie_word_embeddings": True,
}
MINICPM_FAMILY = Remote(
    "MiniCPMForCausalLM", keys={"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 16}
)

FULL, SLIDING = "full_attention", "sliding_attention"
#: Its ids are within the vocabulary, unlike the family's defaults.
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GEMMA = {**IDS, "head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 9}
#: Such that a sequence of 33 tokens is a long one.
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [1.5, 1.0, 2.0, 4.0, 3.0, 1.25, 8.0, 16.0],
}
PART = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}

FAMILIES: dict[str, Case] = {
    **mixtures.FAMILIES,
    "apertus": Case("Apertus", {"pad_token_id": 0}),
    "arcee": Case("Arcee", {"mlp_bias": True, "attention_bias": True, **IDS}),
    "baichuan": Case("Llama", {"num_key_value_heads": 4}, remote=BAICHUAN_13B),
    "bloom": Case("Bloom", BLOOM),
    "codegen": Case("CodeGen", {**GPT, "rotary_dim": 8}),
    "cohere": Case("Cohere", {**IDS, "use_qk_norm": True, "logit_scale": 0.3}),
    "cohere2": Case(
        "Cohere2", {**IDS, "sliding_window": 9, "layer_types": [SLIDING, FULL, SLIDING]}
    ),
    "cwm": Case(
        "Cwm",
        {**IDS, "head_dim": 16, "sliding_window": 9, "layer_types": [FULL, SLIDING, SLIDING]},
    ),
    "decilm": Case("Llama", {"intermediate_size": 256}, remote=DECILM),
    "ernie4.5": Case("Ernie4_5", {"head_dim": 32, "use_bias": True}),
    "exaone": Case("Llama", {}, remote=Remote("ExaoneForCausalLM", EXAONE, EXAONE_KEYS)),
    "exaone4": Case("Exaone4", {"sliding_window": 9, "sliding_window_pattern": 2}),
    "falcon": Case("Falcon", NEW_FALCON),
    "mimo": Case("Qwen2", {}, remote=Remote("MiMoForCausalLM")),
    "gemma": Case("Gemma", {**IDS, "head_dim": 16}),
    "gemma2": Case(
        "Gemma2", {**GEMMA, "attn_logit_softcapping": 1.5, "final_logit_softcapping": 3.0}
    ),
    "gemma3": Case(
        "Gemma3",
        config_class="Gemma3TextConfig",
        config={
            **GEMMA,
            "layer_types": [SLIDING, FULL, SLIDING],
            "rope_parameters": {FULL: ROPES["linear"], SLIDING: ROPES["default"]},
        },
    ),
    "gemma3n": Case(
        "Gemma3n",
        config_class="Gemma3nTextConfig",
        config={
            **IDS,
            "num_hidden_layers": 6,
            "intermediate_size": [96] * 4 + [112] * 2,
            "head_dim": 16,
            "sliding_window": 9,
            "layer_types": [SLIDING, FULL] * 3,
            "num_kv_shared_layers": 2,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 131,
            "altup_num_inputs": 3,
            "laurel_rank": 12,
            "activation_sparsity_pattern": [0.6, 0.6, 0.0, 0.0, 0.0, 0.0],
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma4": Case(
        "Gemma4",
        config_class="Gemma4TextConfig",
        config={
            **IDS,
            "num_hidden_layers": 6,
            "head_dim": 16,
            "global_head_dim": 32,
            "num_global_key_value_heads": 1,
            "attention_k_eq_v": True,
            "sliding_window": 9,
            "layer_types": [SLIDING, FULL] * 3,
            "num_kv_shared_layers": 2,
            "use_double_wide_mlp": True,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 131,
            "final_logit_softcapping": 3.0,
        },
    ),
    "glm": Case("Glm", {**IDS, "head_dim": 16, "rope_parameters": PART}),
    "glm4": Case("Glm4", {**IDS, "head_dim": 16, "rope_parameters": PART}),
    "gpt-j": Case("GPTJ", {**GPT, "rotary_dim": 8}),
    "gpt-neox": Case("GPTNeoX", {}),
    "gpt-bigcode": Case("GPTBigCode", GPT),
    "gpt2": Case("GPT2", {**GPT, "scale_attn_by_inverse_layer_idx": True}, "LMHeadModel"),
    "granite": Case(
        "Granite",
        {
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.3,
            "residual_multiplier": 0.22,
            "logits_scaling": 1.7,
        },
    ),
    "helium": Case("Helium", {"head_dim": 16}),
    "hunyuan": Case(
        "HunYuanDenseV1",
        {
            "head_dim": 16,
            "rope_parameters": {
                "rope_type": "dynamic",
                "factor": 1.0,
                "alpha": 100.0,
                "rope_theta": 10000.0,
            },
        },
    ),
    "hyperclovax": Case(
        "HyperCLOVAX",
        {
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.3,
            "residual_multiplier": 0.7,
            "logits_scaling": 1.7,
        },
    ),
    "internlm2": Case("Llama", {"attention_bias": True}, remote=INTERNLM2_FAMILY),
    "internlm3": Case(
        "Llama",
        {"attention_bias": True, "mlp_bias": True, "head_dim": 32},
        remote=Remote("InternLM3ForCausalLM", keys={"qkv_bias": True, "bias": True}),
    ),
    "jais2": Case("Jais2", IDS),
    "llama": Case("Llama", {"rope_parameters": ROPES["llama3"]}),
    "minicpm": Case("Granite", MINICPM, remote=MINICPM_FAMILY),
    "ministral": Case(
        "Ministral",
        {
            "head_dim": 16,
            "sliding_window": 7,
            "layer_types": [FULL, SLIDING, SLIDING],
            "rope_parameters": ROPES["default"],
        },
    ),
    "ministral3": Case(
        "Ministral3",
        {
            "head_dim": 16,
            "rope_parameters": {
                **ROPES["yarn"],
                "original_max_position_embeddings": 32,
                "llama_4_scaling_beta": 0.3,
            },
        },
    ),
    "mistral": Case("Mistral", {"sliding_window": 7}),
    "mpt": Case("Mpt", MPT),
    "nanochat": Case("NanoChat", {"final_logit_softcapping": 3.0}),
    "nemotron": Case("Nemotron", {}),
    "olmo": Case("Olmo", {**IDS, "clip_qkv": 1.5}),
    "olmo2": Case("Olmo2", IDS),
    "olmo3": Case(
        "Olmo3",
        {
            **IDS,
            "sliding_window": 9,
            "layer_types": [SLIDING, FULL, SLIDING],
            "rope_parameters": {FULL: ROPES["yarn"], SLIDING: ROPES["default"]},
        },
    ),
    "opt": Case("OPT", {"ffn_dim": 96}),
    "persimmon": Case("Persimmon", {}),
    "phi": Case("Phi", {"qk_layernorm": True}),
    "phi3": Case(
        "Phi3",
        {
            **IDS,
            "sliding_window": 11,
            "rope_parameters": LONG_ROPE,
            "original_max_position_embeddings": 32,
        },
    ),
    "qwen2": Case(
        "Qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}
    ),
    "qwen3": Case("Qwen3", {"head_dim": 32}),
    "seed-oss": Case("SeedOss", {"head_dim": 32}),
    "smollm3": Case(
        "SmolLM3",
        {
            **IDS,
            "no_rope_layers": [1, 0, 1],
            "use_sliding_window": True,
            "sliding_window": 9,
            "layer_types": [FULL, SLIDING, SLIDING],
        },
    ),
    "stablelm": Case("StableLm", {"qk_layernorm": True, "use_parallel_residual": True}),
    "starcoder2": Case("Starcoder2", {"sliding_window": 9, "bos_token_id": 1, "eos_token_id": 2}),
    "vault-gemma": Case(
        "VaultGemma", {**GEMMA, "attn_logit_softcapping": 1.5, "final_logit_softcapping": 3.0}
    ),
    **hybrids.FAMILIES,
}

#: Other layouts of the same families, by config.
VARIANTS: dict[str, Case] = {
    **hybrids.VARIANTS,
    **mixtures.VARIANTS,
    "baichuan-7b": Case(
        "Llama", {"num_attention_heads": 32, "num_key_value_heads": 32}, remote=BAICHUAN_7B
    ),
    "granite-swa": Case(
        "GraniteSWA",
        {
            "attention_multiplier": 0.3,
            "sliding_window": 9,
            "layer_types": [FULL, SLIDING, SLIDING],
            "layer_rope_theta": [0, 5000.0, 20000.0],
        },
    ),
    "youtu": Case("Youtu", {**mixtures.LATENT, **IDS}),
    "falcon-7b": Case("Falcon", FALCON),
    "falcon2-11b": Case("Falcon", {**NEW_FALCON, "num_ln_in_parallel_attn": 1}),
    "falcon-rw": Case(
        "Falcon",
        {**FALCON, "alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
        attention="sdpa",  # "eager" adds ALiBi twice
    ),
    "gpt-bigcode-all-heads": Case("GPTBigCode", {**GPT, "multi_query": False}),
    "gpt2": Case("GPT2", GPT, "LMHeadModel"),
    "gpt2-gelu": Case("GPT2", {**GPT, "activation_function": "gelu"}, "LMHeadModel"),
    "gpt-neox-sequential": Case(
        "GPTNeoX",
        {
            "use_parallel_residual": False,
            "attention_bias": False,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5000.0,
                "partial_rotary_factor": 1.0,
            },
        },
    ),
    "opt-no-biases": Case(
        "OPT", {"ffn_dim": 96, "enable_bias": False, "layer_norm_elementwise_affine": False}
    ),
    "opt-350m": Case(
        "OPT", {"ffn_dim": 96, "word_embed_proj_dim": 40, "do_layer_norm_before": False}
    ),
    "phi-tied": Case("Phi", {"tie_word_embeddings": True}),
    "stablelm-2": Case("StableLm", {"use_qkv_bias": True}),
}
