"""Families with experts, and with latent attention: lines of `families.FAMILIES`."""

from __future__ import annotations

from tests.models.checkpoints import Case

#: Of an intermediate size that is no multiple of 16.
EXPERTS = {"moe_intermediate_size": 40, "num_experts_per_tok": 2}

FAMILIES: dict[str, Case] = {
    "mixtral": Case(
        "Mixtral", {"sliding_window": 21, "num_local_experts": 6, "num_experts_per_tok": 3}
    ),
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

VARIANTS: dict[str, Case] = {}
