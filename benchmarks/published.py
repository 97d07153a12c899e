"""Predictions of `galley plan` for GPUs beside published figures: the table of docs/planning.md.

    python -m benchmarks.published

Each row is planned with the workload and the flags that its source names; where it names none, with
vLLM's defaults for the device. Nothing is measured.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from galley.planning.machine import device
from galley.planning.predict import Prediction, predict
from galley.planning.program import planned_model
from galley.planning.simulate import Workload


class Row(NamedTuple):
    """A published measurement.

    Attributes:
        source: letter of the list in docs/planning.md.
        load: as it was sent.
        published: figures by the names of `_FIGURES`.
        fitted: names of those that the overheads in devices.toml were chosen by.
    """

    source: str
    model: str
    machine: str
    load: Workload
    published: Mapping[str, float]
    fitted: tuple[str, ...] = ()


#: The name of a figure, and its value in a prediction.
_FIGURES: dict[str, Any] = {
    "tokens/s": lambda p: p.output_tokens,
    "requests/s": lambda p: p.requests,
    "TTFT p50": lambda p: p.ttft["p50"] * 1e3,
    "TTFT mean": lambda p: p.ttft["mean"] * 1e3,
    "ITL p50": lambda p: p.itl["p50"] * 1e3,
    "TPOT": lambda p: p.tpot * 1e3,
}
#: Sizes from the config.json of the checkpoints.
_COMMON: dict[str, Any] = {
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "max_position_embeddings": 32768,
    "torch_dtype": "bfloat16",
}
_QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "num_hidden_layers": 28,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
_CONFIGS: dict[str, dict[str, Any]] = {
    "Qwen2.5 0.5B": {"architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": True}
    | {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24}
    | {"num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936},
    "Llama 3.1 8B": {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False}
    | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
    | {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256},
    "Qwen3 0.6B": _QWEN3 | {"hidden_size": 1024, "intermediate_size": 3072},
    "Qwen3 1.7B": _QWEN3 | {"hidden_size": 2048, "intermediate_size": 6144},
    "Qwen3 4B": _QWEN3
    | {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36}
    | {"num_attention_heads": 32},
}


def _sweep(count: int, tokens: float, ttft: float, itl: float, fitted: tuple[str, ...] = ()) -> Row:
    load = Workload(256, 128, count, requests=max(5 * count, 16))
    published = {"tokens/s": tokens, "TTFT p50": ttft, "ITL p50": itl}
    return Row("a", "Qwen2.5 0.5B", "l4", load, published, fitted)


#: Of [a], the overheads of a step were chosen by all rates, those of a request by the first and the
#: last row.
_RATES = ("tokens/s", "ITL p50")
_ALL = (*_RATES, "TTFT p50")
ROWS = (
    _sweep(1, 168, 27.0, 5.1, _ALL),
    _sweep(2, 367, 37.8, 5.2, _RATES),
    _sweep(4, 698, 50.1, 5.3, _RATES),
    _sweep(8, 1312, 60.9, 5.5, _RATES),
    _sweep(16, 2277, 103.8, 6.0, _RATES),
    _sweep(32, 3773, 135.3, 7.1, _ALL),
    Row(
        *("b", "Llama 3.1 8B", "h100", Workload(128, 128, 1, requests=16)),
        *({"TTFT p50": 13.98, "TPOT": 6.48}, ("TTFT p50",)),
    ),
    Row(
        *("b", "Llama 3.1 8B", "h100", Workload(128, 128, 4, requests=20)),
        {"TTFT p50": 22.75, "TPOT": 6.59},
    ),
    Row("c", "Llama 3.1 8B", "a100-40gb", Workload(1024, 128, 1, requests=20), {"tokens/s": 75}),
    Row("c", "Llama 3.1 8B", "a100-40gb", Workload(1024, 128, 8, requests=160), {"tokens/s": 495}),
    Row(
        *("d", "Qwen3 0.6B", "h100", Workload(512, 128, 8, rate=16.0, requests=200)),
        {"TTFT mean": 39, "TPOT": 2.39},
    ),
    Row(
        *("d", "Qwen3 0.6B", "h100", Workload(512, 128, 500, requests=500)),
        {"requests/s": 94.9, "TTFT mean": 2900, "TPOT": 5.45},
    ),
    Row(
        *("e", "Qwen3 4B", "h100", Workload(512, 128, 80, requests=800)),
        {"requests/s": 41.75, "TTFT mean": 597, "TPOT": 10.17},
    ),
    Row(
        *("f", "Qwen3 0.6B", "a100-80gb", Workload(128, 128, 1, requests=8)),
        {"TTFT mean": 12.4, "TPOT": 4.2},
    ),
    Row(
        *("f", "Qwen3 1.7B", "a100-80gb", Workload(128, 128, 1, requests=8)),
        {"TTFT mean": 11.4, "TPOT": 4.6},
    ),
    Row(
        *("f", "Qwen3 1.7B", "a100-80gb", Workload(1024, 128, 1, requests=4)),
        {"TTFT mean": 26.4, "TPOT": 4.8},
    ),
)


def planned(row: Row, folder: Path) -> Prediction:
    """The prediction for a row, with the limits that vLLM's server sets on the device."""
    (folder / "config.json").write_text(json.dumps(_COMMON | _CONFIGS[row.model]))
    large = row.machine == "h100"
    flags = {
        "max_model_len": 4096,
        "max_num_batched_tokens": 8192 if large else 2048,
        "max_num_seqs": 1024 if large else 256,
        "target_itl": 0.0,
    }
    return predict(planned_model({"model": str(folder)}), device(row.machine), row.load, flags)


def main() -> None:
    fitted: list[float] = []
    held_out: list[float] = []
    print("| source | model, machine | in, out | load | predicted / published (ratio) |")
    print("|---|---|---|---|---|", flush=True)
    for row in ROWS:
        with tempfile.TemporaryDirectory() as folder:
            found = planned(row, Path(folder))
        cells = []
        for name, published in row.published.items():
            value = float(_FIGURES[name](found))
            cells.append(f"{name} {value:,.4g} / {published:,.4g} ({value / published:.2f})")
            errors = fitted if name in row.fitted else held_out
            errors.append(math.log(value / published))
        load = row.load
        sent = f"{load.rate:g} a second" if load.rate else f"{load.concurrency} at once"
        where = f"{row.model}, {device(row.machine).title.removeprefix('NVIDIA ')}"
        sizes = f"{load.prompt:,}, {load.output}"
        print(f"| {row.source} | {where} | {sizes} | {sent} | {'; '.join(cells)} |", flush=True)
    for name, errors in (("fitted", fitted), ("held out", held_out)):
        within = sum(abs(e) < math.log(1.25) for e in errors)
        factor = math.exp(math.sqrt(sum(e * e for e in errors) / len(errors)))
        print(f"\n{name}: {within} of {len(errors)} within 25 %, root mean square {factor:.2f} x")


if __name__ == "__main__":
    main()
