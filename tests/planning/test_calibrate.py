"""This machine is measured with the kernels that serve, once."""

from __future__ import annotations

from pathlib import Path

import pytest

from galley.kernels.weight_format import WeightFormat
from galley.kv.format import KVFormat
from galley.planning import calibrate, steps
from galley.planning.limits import MachineLimits
from galley.planning.program import Sizes

NUMBERS = KVFormat("bfloat16")
SIZES = Sizes(256, 512, heads=4, kv_heads=4, head_dim=64, layers=1, vocab=1000, weights=1 << 20)
FORMATS = [WeightFormat("bf16"), WeightFormat("i4", 32, offset="min")]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A small vocabulary, few shapes, limits that are given, an empty cache."""
    quicker = {"ROWS": (1, 4), "PROMPTS": (32,), "CONTEXT": 64, "_VOCAB": 256}
    for name, value in quicker.items():
        monkeypatch.setattr(calibrate, name, value)
    for name in ("_WARM", "_TIMED", "_SECONDS"):
        monkeypatch.setattr(steps, name, 0.0)
    limits = MachineLimits(1, 1e10, {"f32": 1e11, "bf16": 0.0, "int8": 0.0})
    monkeypatch.setattr(calibrate, "measure_limits", lambda threads: limits)
    monkeypatch.setenv("GALLEY_CACHE_DIR", str(tmp_path))


@pytest.mark.usefixtures("quick")
def test_formats_are_measured_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = calibrate.this_machine(FORMATS, NUMBERS, SIZES, threads=1)
    formats = "bf16", "i4/32 f16 min x q16"
    shapes = "256→768", "256→256", "256→1024", "512→256"
    matrices = {f"{fmt} {shape}" for fmt in formats for shape in shapes}
    assert set(machine.rates) == {*formats, *matrices, "attention bfloat16"}
    for curve in machine.rates.values():
        assert [rows for rows, _ in curve] == [1, 4, 32][: len(curve)] or curve[-1][0] == 32
        assert all(rate > 0 for _, rate in curve)
    assert machine.op_seconds > 0
    assert machine.step_seconds > 0
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(calibrate, "measure", lambda *args: pytest.fail("measured again"))
    again = calibrate.this_machine(FORMATS[:1], NUMBERS, SIZES, threads=1)
    assert again.rates["bf16"] == machine.rates["bf16"]


def test_a_large_model_is_measured_by_few_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "beyond_caches", lambda: 600_000_000)
    large = Sizes(
        8192, 28672, heads=64, kv_heads=8, head_dim=128, layers=80, vocab=128256, weights=1 << 40
    )
    assert calibrate._config(FORMATS[0], large)["num_hidden_layers"] == 1
    small = SIZES._replace(layers=30, weights=1 << 30)
    assert calibrate._config(FORMATS[0], small)["num_hidden_layers"] == 30
    assert calibrate._config(FORMATS[0], small)["hidden_size"] == 256
    # As much as a model whose other weights have fewer bits.
    mixed = small._replace(weights=15 << 20)
    assert calibrate._config(FORMATS[0], mixed)["num_hidden_layers"] == 12


@pytest.mark.usefixtures("quick")
def test_a_damaged_file_is_measured_again(tmp_path: Path) -> None:
    calibrate.this_machine(FORMATS[:1], NUMBERS, SIZES, threads=1)
    [path] = tmp_path.iterdir()
    path.write_text("{")
    assert calibrate.this_machine(FORMATS[:1], NUMBERS, SIZES, threads=1).rates["bf16"]
