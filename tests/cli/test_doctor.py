"""`galley doctor`: what it judges, by values; and the whole on this machine."""

import json
from pathlib import Path

import pytest

from galley.cli import doctor
from galley.cli.main import main


@pytest.fixture(autouse=True)
def _memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory and cores that do not depend on what else runs."""
    monkeypatch.setattr(doctor.Machine, "detect", lambda: doctor.Machine(4, 16 * 2**30))


def test_this_machine_can_run_the_built_in_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", "--max-model-len", "64"]) == 0
    found = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert found["kernels"]["state"] in ("ok", "note")
    assert found["model"]["state"] == "ok"
    assert all(each["state"] != "bad" for each in found.values())
    assert main(["doctor", "--max-model-len", "64"]) == 0
    assert "Next: `galley chat`" in capsys.readouterr().out


def test_a_model_that_cannot_run_is_found(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["doctor", str(tmp_path / "none.gguf")]) == 1
    assert "BAD   model" in capsys.readouterr().out
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 128256,
        "hidden_size": 16384,
        "intermediate_size": 53248,
        "num_hidden_layers": 1260,
        "num_attention_heads": 128,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "torch_dtype": "bfloat16",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["doctor", str(tmp_path), "--load-format", "dummy"]) == 1
    assert "smaller model" in capsys.readouterr().out


def test_what_is_slow_or_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.python_version((3, 9)).state == "bad"
    assert doctor.cores(8, 8, {}).state == "ok"
    few = doctor.cores(8, 8, {"OMP_NUM_THREADS": "1"})
    assert few.state == "note"
    assert "--num-threads 8" in few.advice
    assert doctor.cores(2, 8, {}).state == "note"
    assert doctor.load(9.5, 4).state == "note"
    assert doctor.load(0.5, 4).state == "ok"
    assert doctor.memory(2**28).state == "bad"
    assert "madvise" in doctor.huge_pages("always madvise [never]").advice
    assert "4096" in doctor.open_files((1024, 2048)).advice
    assert doctor.open_files((1024, -1)).state == "ok"
    assert doctor.address_space(2**33).state == "note"
    assert "VLLM_NO_SUCH" in doctor.variables({"VLLM_NO_SUCH": "1"}).text
    assert doctor.kernels({"GALLEY_CPU_ISA": "avx2"}).state == "note"
    monkeypatch.setattr(doctor, "LEAST_DISK", 1 << 62)
    assert "cache prune" in doctor.disk().advice
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert "GALLEY_CACHE_DIR" in doctor.disk().advice
