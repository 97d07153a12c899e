"""Choice of backend and number format, and its log lines."""

from __future__ import annotations

import dataclasses
import logging

import pytest

from galley import LLM, SamplingParams
from galley.config import DeviceConfig, EngineConfig, ModelConfig, ModelInfo
from galley.errors import ConfigError, ModelError
from galley.kernels._native import isa
from galley.models.registry import ARCHITECTURES, Architecture
from galley.runner.device import dense_format, open_device
from tests.kernels.test_passes import Chain
from tests.models.driver import LIMITS

MODEL = ModelInfo("LlamaForCausalLM", {}, vocab_size=8, max_position=8, dtype="bfloat16")


@pytest.mark.parametrize(
    ("dtype", "checkpoint", "want", "notice"),
    [
        ("auto", "bfloat16", "bf16", False),
        ("auto", "Q4_1", "bf16", False),
        ("auto", "float16", "bf16", True),
        ("auto", "float32", "bf16", True),
        ("bfloat16", "float32", "bf16", False),
        ("float32", "bfloat16", "f32", False),
        ("float", "Q4_1", "f32", False),
    ],
)
def test_dtype(dtype, checkpoint, want, notice, caplog):
    with caplog.at_level(logging.INFO, "galley.runner.device"):
        assert dense_format(dtype, checkpoint) == want
    assert bool(caplog.records) == notice
    assert all(checkpoint in r.getMessage() for r in caplog.records)


@pytest.mark.parametrize("dtype", ["float16", "half"])
def test_float16_is_computed_in_bfloat16_with_one_line(dtype, caplog):
    assert dense_format(dtype, "float16") == "bf16"
    (record,) = caplog.records
    assert f"--dtype {dtype}: computing in bfloat16" in record.getMessage()


@pytest.mark.parametrize(("backend", "name"), [("auto", "cpu"), ("reference", "reference")])
def test_the_backend_is_the_one_that_was_named(backend, name):
    config = EngineConfig(device=DeviceConfig(backend=backend, num_threads=1))
    assert open_device(config, "bf16", MODEL, []).name == name


def test_a_backend_of_another_package(tmp_path, monkeypatch):
    """Checklist 258, 263, 264: an entry point of the group `galley.backends`."""
    (tmp_path / "plugin_backend.py").write_text(
        "from galley.kernels.cpu import CpuBackend\n\n\n"
        "class PluginBackend(CpuBackend):\n    name = 'plugin'\n"
    )
    metadata = tmp_path / "plugin_backend-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin-backend\nVersion: 1\n")
    points = "[galley.backends]\nplugin = plugin_backend:PluginBackend\n"
    (metadata / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(str(tmp_path))
    with LLM(backend="plugin", max_model_len=64, kv_cache_memory_bytes="8m") as llm:
        [output] = llm.generate("Water", SamplingParams(max_tokens=2), use_tqdm=False)
    assert len(output.outputs[0].token_ids) == 2
    config = EngineConfig(device=DeviceConfig(backend="plugin", num_threads=1))
    assert open_device(config, "bf16", MODEL, []).name == "plugin"
    config = EngineConfig(device=DeviceConfig(backend="other"))
    with pytest.raises(ConfigError, match=r"no such backend; choose from auto, cpu, .*plugin"):
        open_device(config, "bf16", MODEL, [])


def test_the_architecture_says_which_backends_can_run_it(monkeypatch):
    line = Architecture("galley.models.llama", "llama", backends=("reference",))
    monkeypatch.setitem(ARCHITECTURES, MODEL.architecture, line)
    assert open_device(EngineConfig(), "bf16", MODEL, []).name == "reference"
    config = EngineConfig(device=DeviceConfig(backend="cpu"))
    with pytest.raises(ConfigError, match="--backend cpu cannot run LlamaForCausalLM; reference"):
        open_device(config, "bf16", MODEL, [])


def test_an_unknown_architecture_is_refused_before_a_backend_is_opened():
    model = dataclasses.replace(MODEL, architecture="Unheard", model_impl="galley")
    with pytest.raises(ModelError, match="'Unheard' is not supported"):
        open_device(EngineConfig(), "bf16", model, [])


@pytest.mark.parametrize(
    ("flag", "kinds"),
    [
        ("auto", {"q8", "q16"}),
        ("int8", {"q8"}),
        ("int16", {"q16"}),
        pytest.param("bf16", set(), marks=pytest.mark.skipif(isa() != "amx", reason="needs AMX")),
    ],
)
def test_quantized_activations_are_what_the_flag_says(flag, kinds):
    config = EngineConfig(
        model=ModelConfig(quantized_activations=flag), device=DeviceConfig(num_threads=1)
    )
    executable = open_device(config, "bf16", MODEL, []).build(Chain("Q4_0", "Q4_1"), LIMITS)
    program = executable.describe()
    assert {kind for kind in ("q8", "q16") if f" {kind}" in program} == kinds


def test_activations_of_bf16_need_amx(monkeypatch):
    monkeypatch.setenv("GALLEY_CPU_ISA", "generic")
    config = EngineConfig(model=ModelConfig(quantized_activations="bf16"))
    with pytest.raises(ConfigError, match="--quantized-activations bf16 needs AMX"):
        open_device(config, "bf16", MODEL, [])


def test_a_backend_without_batch_invariance_is_logged(caplog):
    config = EngineConfig(device=DeviceConfig(backend="reference"))
    with caplog.at_level(logging.WARNING, "galley.runner.device"):
        open_device(config, "bf16", MODEL, [])
    assert "may depend on what else is computed" in caplog.text


def test_batch_invariance_is_refused_where_the_backend_lacks_it():
    for backend in ("auto", "cpu"):
        asked = EngineConfig(device=DeviceConfig(backend=backend, batch_invariant=True))
        assert open_device(asked, "bf16", MODEL, []).batch_invariant
    asked = EngineConfig(device=DeviceConfig(backend="reference", batch_invariant=True))
    with pytest.raises(ConfigError, match=r"VLLM_BATCH_INVARIANT=1.*--backend cpu"):
        open_device(asked, "bf16", MODEL, [])
