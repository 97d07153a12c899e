"""A hybrid and a mixture with random weights in bf16: Galley's `LLM` and vLLM's in turn, no HTTP.

    LAB=~/lab python -m benchmarks.peers.families [--rounds 5] [--models hybrid mixture]

vLLM is the one that benchmarks/peers/vllm.sh installs under LAB. A cell is the median over the
rounds; a ratio is the median of those of each round.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.peers.engines import ENGINES, environment_of, lab
from benchmarks.peers.offline import OfflineWorker
from galley.cli.bench.tables import print_table

_COMMON = {
    "vocab_size": 8192,
    "max_position_embeddings": 4096,
    "num_key_value_heads": 4,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS: dict[str, dict[str, Any]] = {
    # The sizes of Granite 4.0 h 350m, 16 layers.
    "hybrid": {
        **_COMMON,
        "architectures": ["GraniteMoeHybridForCausalLM"],
        "model_type": "granitemoehybrid",
        "hidden_size": 768,
        "intermediate_size": 2048,
        "shared_intermediate_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 12,
        "rms_norm_eps": 1e-5,
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "layer_types": [*["mamba"] * 7, "attention"] * 2,
        "position_embedding_type": "nope",
        "attention_multiplier": 0.015625,
        "embedding_multiplier": 12,
        "logits_scaling": 3,
        "residual_multiplier": 0.246,
        "mamba_n_heads": 48,
        "mamba_d_head": 32,
        "mamba_d_state": 128,
        "mamba_n_groups": 1,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
        "mamba_chunk_size": 256,
        "mamba_conv_bias": True,
        "mamba_proj_bias": False,
    },
    "mixture": {
        **_COMMON,
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_size": 1024,
        "intermediate_size": 512,
        "moe_intermediate_size": 512,
        "num_hidden_layers": 12,
        "num_attention_heads": 16,
        "head_dim": 64,
        "rms_norm_eps": 1e-6,
        "num_experts": 32,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
    },
}
#: Name → streams, tokens of each prompt, tokens of each answer.
TASKS = {
    "prompt of 512, tok/s": (1, 512, 1),
    "1 stream, tok/s": (1, 16, 64),
    "8 streams, tok/s": (8, 16, 64),
}


def workers(model: Path, log: Path) -> dict[str, OfflineWorker]:
    """One of each engine."""
    script = str(Path(__file__).with_name("offline_dummy.py"))
    vllm = [str(lab() / "vllmcpu/bin/python"), script, "vllm", str(model)]
    return {
        "Galley": OfflineWorker([sys.executable, script, "galley", str(model)], log),
        "vLLM": OfflineWorker(vllm, log, environment_of(ENGINES["vllm-bf16"])),
    }


def rows(name: str, rounds: int, folder: Path) -> Iterator[dict[str, Any]]:
    """A row of each task. The first round warms up."""
    model = folder / name
    model.mkdir()
    (model / "config.json").write_text(json.dumps(MODELS[name]))
    engines = workers(model, folder / "log")
    try:
        for task, (streams, prompt, output) in TASKS.items():
            speeds: dict[str, list[float]] = {engine: [] for engine in engines}
            for i in range(rounds + 1):
                rng = random.Random(i)
                prompts = [[rng.randrange(5, 8000) for _ in range(prompt)] for _ in range(streams)]
                for engine, worker in engines.items():
                    seconds = worker.run(prompts, output, streams)["seconds"]
                    counted = streams * (output if output > 1 else prompt)
                    speeds[engine].append(counted / seconds)
            ours, theirs = (values[1:] for values in speeds.values())
            yield {
                "model": name,
                "": task,
                "Galley": statistics.median(ours),
                "vLLM": statistics.median(theirs),
                "ratio": statistics.median(a / b for a, b in zip(ours, theirs, strict=True)),
            }
    finally:
        for worker in engines.values():
            worker.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        table = [row for name in flags.models for row in rows(name, flags.rounds, Path(folder))]
    print_table("Random weights in bf16", table)


if __name__ == "__main__":
    main()
