"""One tiny checkpoint of every family of the registry, its peculiarities switched on.

A window is shorter than the prompts, a soft cap bites, a multiplier is no power of two.
"""

from __future__ import annotations

from tests.models.checkpoints import PHI3, ROPES, Case

FAMILIES: dict[str, Case] = {
    "llama": Case("Llama", {"rope_parameters": ROPES["llama3"]}),
    "mistral": Case("Mistral", {"sliding_window": 7}),
    "phi3": Case("Phi3", {**PHI3, "sliding_window": 11}),
    "qwen2": Case(
        "Qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}
    ),
    "qwen3": Case("Qwen3", {"head_dim": 32}),
}
