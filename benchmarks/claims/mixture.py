"""A mixture of experts compared with a dense model of the same total size (checklist 274)."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.claims.claim import Finding, Setup, compare
from galley.planning.steps import Shape, StepBench

_REPETITIONS = 15
_EXPERTS, _CHOSEN, _INTERMEDIATE = 64, 8, 512
_SIZES: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "dtype": "bfloat16",
    "tie_word_embeddings": True,
}
#: The same attention; as many weights in all experts as in the dense block.
_MODELS: dict[str, dict[str, Any]] = {
    "mixture": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "intermediate_size": _INTERMEDIATE,
        "moe_intermediate_size": _INTERMEDIATE,
        "num_experts": _EXPERTS,
        "num_experts_per_tok": _CHOSEN,
        "norm_topk_prob": True,
    },
    "dense": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "intermediate_size": _EXPERTS * _INTERMEDIATE,
    },
}


def measure(setup: Setup) -> Finding:
    """Steps of both with random weights; the model of the setup is not used."""
    shapes = [Shape(1, 64, 1), Shape(8, 64, 1), Shape(1, 0, setup.some(512, 64))]
    with tempfile.TemporaryDirectory() as folder:
        benches = {}
        for name, own in _MODELS.items():
            place = Path(folder, name)
            place.mkdir()
            (place / "config.json").write_text(json.dumps({**_SIZES, **own}))
            engine = {"model": str(place), "load_format": "dummy"}
            benches[name] = StepBench(engine, shapes)

        def median_ms(name: str, shape: Shape) -> Callable[[], float]:
            return lambda: statistics.median(benches[name].seconds(shape, _REPETITIONS)) * 1e3

        return Finding(
            [
                compare(
                    "274",
                    f"{_CHOSEN} of {_EXPERTS} experts against a dense model of that size, "
                    + (f"prefill of {shape.new}" if shape.new > 1 else f"decode of {shape.rows}"),
                    ("mixture", median_ms("mixture", shape)),
                    ("dense", median_ms("dense", shape)),
                    setup.rounds,
                    "ms",
                    False,
                )
                for shape in shapes
            ]
        )
