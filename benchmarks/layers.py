"""Each family of layers against its own roofline, beside the dense path in equal steps.

    python -m benchmarks.layers [--repetitions 7] [--rounds 3] [--threads 2] [--families "RWKV 7"]
        [--steps 8]

Four layers of each family with random weights in bf16. Before each step a buffer beyond the caches
is read, so that weights, states and the KV cache come from memory, at whose speed their rooflines
are computed; and until tiles run at their full speed, which another program on the same core can
slow to a quarter for a while. The roofline of experts is the bytes of those that are expected to be
chosen, that of latent attention its latents or its arithmetic, that of a recurrence its state and
constants or its multiply-adds (galley/planning/work.py). The dense path is what linear layers and
attention reach of theirs in a model of the same sizes, measured in turn. The goal is at least 80 %
of it. Takes about a minute and a half on two quiet cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from galley.cli.bench.tables import print_table
from galley.planning.limits import MachineLimits, Probe, measure_limits
from galley.planning.steps import Shape, StepBench
from galley.planning.work import work_of

WANTED = 0.8
#: A step waits for a part of the highest bf16 rate, in probes of so many rounds, at most so often.
_FULL_SPEED, _ROUNDS, _TRIES = 0.8, 30_000, 20
#: Rows of a decode step, or a prompt.
STEPS = {"1": Shape(1, 1024, 1), "8": Shape(8, 1024, 1), "prompt": Shape(1, 0, 512)}

_SIZES: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "dtype": "bfloat16",
    "tie_word_embeddings": True,
}
_ATTENTION = {"num_key_value_heads": 4, "head_dim": 64}


@dataclass(frozen=True)
class Family:
    """A config, and the ops of a step that belong to the family of layers."""

    config: dict[str, Any]
    ops: tuple[str, ...]


DENSE = Family(
    {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "intermediate_size": 3072,
        **_ATTENTION,
    },
    ("linear", "attention"),
)
FAMILIES = {
    "experts": Family(
        {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "moe_intermediate_size": 768,
            "intermediate_size": 768,
            "num_experts": 64,
            "num_experts_per_tok": 8,
            "norm_topk_prob": True,
            **_ATTENTION,
        },
        ("expert_up", "expert_down"),
    ),
    "latent attention": Family(
        {
            "architectures": ["DeepseekV2ForCausalLM"],
            "model_type": "deepseek_v2",
            "intermediate_size": 3072,
            "moe_intermediate_size": 768,
            "first_k_dense_replace": 4,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "n_shared_experts": 1,
            "num_key_value_heads": 16,
            "q_lora_rank": None,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
        },
        ("attention",),
    ),
    "Mamba 2": Family(
        {
            "architectures": ["Mamba2ForCausalLM"],
            "model_type": "mamba2",
            "state_size": 128,
            "num_heads": 32,
            "head_dim": 64,
            "n_groups": 1,
            "expand": 2,
            "conv_kernel": 4,
            "layer_norm_epsilon": 1e-5,
        },
        ("ssd_scan",),
    ),
    "Mamba 1": Family(
        {
            "architectures": ["MambaForCausalLM"],
            "model_type": "mamba",
            "state_size": 16,
            "expand": 2,
            "intermediate_size": 2048,
            "time_step_rank": 64,
            "conv_kernel": 4,
            "layer_norm_epsilon": 1e-5,
        },
        ("selective_scan",),
    ),
    "gated delta rule": Family(
        {
            "architectures": ["Qwen3_5ForCausalLM"],
            "model_type": "qwen3_5_text",
            "intermediate_size": 3072,
            "layer_types": ["linear_attention", "full_attention"] * 2,
            "linear_num_key_heads": 16,
            "linear_num_value_heads": 16,
            "linear_key_head_dim": 128,
            "linear_value_head_dim": 128,
            "linear_conv_kernel_dim": 4,
            **_ATTENTION,
        },
        ("gated_delta_rule",),
    ),
    "delta rule by key": Family(
        {
            "architectures": ["KimiLinearForCausalLM"],
            "model_type": "kimi_linear",
            "layer_types": ["linear_attention"] * 4,
            "linear_num_heads": 16,
            "linear_head_dim": 128,
            "linear_conv_kernel_dim": 4,
            "mla_use_nope": True,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
            "num_key_value_heads": 16,
            "intermediate_size": 3072,
            "moe_intermediate_size": 768,
            "first_k_dense_replace": 4,
            "num_experts": 8,
            "num_experts_per_token": 2,
        },
        ("gated_delta_rule",),
    ),
    "RWKV 7": Family(
        {
            "architectures": ["RWKV7ForCausalLM"],
            "model_type": "rwkv7",
            "head_dim": 64,
            "intermediate_size": 4096,
            "decay_low_rank_dim": 64,
            "a_low_rank_dim": 64,
            "v_low_rank_dim": 32,
            "gate_low_rank_dim": 128,
            "norm_eps": 1e-5,
            "hidden_act": "sqrelu",
            "norm_first": True,
            "norm_bias": True,
        },
        ("wkv7",),
    ),
}


def best_limits(threads: int, times: int = 5) -> MachineLimits:
    """The highest of several measurements: other programs only lower them."""
    measured = [measure_limits(threads) for _ in range(times)]
    peak = {name: max(limits.peak[name] for limits in measured) for name in measured[0].peak}
    return MachineLimits(threads, max(limits.read for limits in measured), peak)


def share(
    bench: StepBench,
    limits: MachineLimits,
    shape: Shape,
    ops: Sequence[str],
    repetitions: int,
    evict: Callable[[], object],
) -> float:
    """Time that the ops would take at their rooflines over the time they take."""
    taken = least = 0.0
    for item in bench.operations(shape, repetitions, evict):
        if item.node is None or item.node.op not in ops:
            continue
        taken += item.seconds
        least += work_of(item.node, shape, bench.cache).roofline(limits)
    return least / taken


def write_config(folder: Path, family: Family) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**_SIZES, **family.config}))
    return folder


def rows(
    names: Sequence[str], shapes: list[Shape], threads: int, repetitions: int, rounds: int
) -> Iterator[dict[str, Any]]:
    """A row of each family and step; medians over the rounds."""
    with tempfile.TemporaryDirectory() as folder:

        def bench_of(name: str, family: Family) -> StepBench:
            place = write_config(Path(folder, name.replace(" ", "_")), family)
            engine = {"model": str(place), "load_format": "dummy", "num_threads": threads}
            return StepBench(engine, shapes)

        dense, limits = bench_of("dense", DENSE), best_limits(threads)
        probe = Probe(threads)

        def evict() -> None:
            """Read a buffer beyond the caches, again until tiles then run at their full speed."""
            for _ in range(_TRIES):
                probe.read(repetitions=1)
                if probe.arithmetic("bf16", _ROUNDS, 1) >= _FULL_SPEED * limits.peak["bf16"]:
                    return

        def share_of(bench: StepBench, family: Family, shape: Shape) -> float:
            return share(bench, limits, shape, family.ops, repetitions, evict)

        for name in names:
            family = FAMILIES[name]
            bench = bench_of(name, family)
            for shape in shapes:
                own, other = [], []
                for _ in range(rounds):
                    own.append(share_of(bench, family, shape))
                    other.append(share_of(dense, DENSE, shape))
                yield row(name, shape, statistics.median(own), statistics.median(other))


def row(name: str, shape: Shape, own: float, dense: float) -> dict[str, Any]:
    return {
        "layers": name,
        "step": f"prefill of {shape.new}" if shape.new > 1 else f"decode, {shape.rows} rows",
        "% of roofline": 100 * own,
        "dense path, %": 100 * dense,
        "ratio": own / dense,
        f"≥ {WANTED}": "yes" if own >= WANTED * dense else "no",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    flags = parser.parse_args()
    title = f"Layers against their rooflines, {flags.threads} threads, context 1,024"
    shapes = [STEPS[name] for name in flags.steps]
    counts = flags.threads, flags.repetitions, flags.rounds
    print_table(title, list(rows(flags.families, shapes, *counts)))


if __name__ == "__main__":
    main()
