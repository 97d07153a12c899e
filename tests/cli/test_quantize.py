"""`galley quantize`: what it writes gives the logits of the model that is quantized as it loads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from galley.cli.main import main
from galley.config.engine import LoadConfig, ModelConfig
from galley.kernels.backend import open_backend
from galley.layers.weights import CheckpointWeights
from galley.loader import open_checkpoint, resolve_source
from galley.quant import scheme_of, to_float32
from tests.models.checkpoints import CASES, make
from tests.runner.models import open_runner
from tests.runner.test_quality import teacher_forced


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    make(CASES["llama-rope-default"]).save_pretrained(path)
    return path


def checkpoint(path: Path, quantization: str | None = None):
    source = resolve_source(ModelConfig(model=str(path), quantization=quantization), LoadConfig())
    return open_checkpoint(source)


def logits(opened) -> np.ndarray:
    ids = np.random.default_rng(0).integers(0, 131, (2, 40))
    return teacher_forced(open_runner(opened, max_model_len=64, dtype="float32"), ids)


@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_equals_online_quantisation(folder: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    assert main(["quantize", str(folder), "--to", name, str(out)]) == 0
    assert np.array_equal(logits(checkpoint(out)), logits(checkpoint(folder, name)))
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_int4_is_near(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["quantize", str(folder), "--to", "int4", str(out)]) == 0
    opened, plain = checkpoint(out), checkpoint(folder)
    weights = CheckpointWeights(opened, open_backend("cpu", "f32", threads=1))
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        want = to_float32(plain.tensor(f"{name}.weight"))
        got = scheme_of(opened.model_info).read(name, want.shape, weights).to_float32()
        assert 0 < np.linalg.norm(got - want) < 0.12 * np.linalg.norm(want)
    assert np.isfinite(logits(opened)).all()


@pytest.mark.parametrize(
    "case", ["no out", "no format", "exists", "unknown", "quantized", "nowhere"]
)
def test_bad_input_is_one_line(folder: Path, tmp_path: Path, capsys, case: str) -> None:
    out = str(tmp_path / "out")
    if case == "quantized":
        assert main(["quantize", str(folder), "--to", "int8", out]) == 0
        capsys.readouterr()
    argv = {
        "no out": [str(folder), "--to", "int8"],
        "no format": [str(folder), out],
        "exists": [str(folder), "--to", "int8", str(tmp_path)],
        "unknown": [str(folder), "--to", "int5", out],
        "quantized": [out, "--to", "int8", out + "2"],
        "nowhere": [str(folder), "--to", "int8", out + "/a/b"],
    }[case]
    assert main(["quantize", *argv]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
