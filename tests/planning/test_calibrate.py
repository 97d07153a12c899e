"""This machine is measured with the kernels that serve, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from galley.kernels.weight_format import WeightFormat
from galley.kv.format import KVFormat
from galley.planning import calibrate, steps
from galley.planning.limits import MachineLimits

NUMBERS = KVFormat("bfloat16")
FORMATS = [WeightFormat("bf16"), WeightFormat("i4", 32, offset="min")]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A small model, few shapes, limits that are given, an empty cache."""
    sizes: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1}
    config = {**calibrate._CONFIG, **sizes, "vocab_size": 256, "num_attention_heads": 4}
    monkeypatch.setattr(calibrate, "_CONFIG", {**config, "num_key_value_heads": 4})
    for name, value in (("ROWS", (1, 4)), ("PROMPTS", (32,)), ("CONTEXT", 64)):
        monkeypatch.setattr(calibrate, name, value)
    monkeypatch.setattr(steps, "_ROUNDS", 1)
    limits = MachineLimits(1, 1e10, {"f32": 1e11, "bf16": 0.0, "int8": 0.0})
    monkeypatch.setattr(calibrate, "measure_limits", lambda threads: limits)
    monkeypatch.setenv("GALLEY_CACHE_DIR", str(tmp_path))


@pytest.mark.usefixtures("quick")
def test_formats_are_measured_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = calibrate.this_machine(FORMATS, NUMBERS, threads=1)
    assert set(machine.rates) == {"bf16", "i4/32 f16 min x q16", "attention bfloat16"}
    for curve in machine.rates.values():
        assert [rows for rows, _ in curve] == [1, 4, 32][: len(curve)] or curve[-1][0] == 32
        assert all(rate > 0 for _, rate in curve)
    assert machine.op_seconds > 0
    assert machine.step_seconds > 0
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(calibrate, "measure", lambda *args: pytest.fail("measured again"))
    again = calibrate.this_machine(FORMATS[:1], NUMBERS, threads=1)
    assert again.rates["bf16"] == machine.rates["bf16"]


@pytest.mark.usefixtures("quick")
def test_a_damaged_file_is_measured_again(tmp_path: Path) -> None:
    calibrate.this_machine(FORMATS[:1], NUMBERS, threads=1)
    [path] = tmp_path.iterdir()
    path.write_text("{")
    assert calibrate.this_machine(FORMATS[:1], NUMBERS, threads=1).rates["bf16"]
