"""A model in stages equals the whole model; files on disk equal the state dict."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from galley.batch import GroupSpec, NewRow, RequestTable, StepPlan
from galley.config import LoadConfig, ModelConfig
from galley.errors import ModelError
from galley.kernels.backend import kv_layout
from galley.kernels.ops import Ops
from galley.kernels.reference import KVCache, ReferenceBackend, ReferenceOps, step_context
from galley.kv.format import KVFormat
from galley.layers.weights import CheckpointWeights
from galley.loader import open_checkpoint, resolve_source
from galley.models.decoder import Stage
from galley.models.registry import build_model
from galley.request import SamplingParams
from tests.models.checkpoints import CASES, StateDict, hf_logits, make
from tests.models.driver import LIMITS, load, solo_logits

IDS = np.random.default_rng(2).integers(0, 131, 40)


def stage_of(checkpoint, start: int, end: int | None):
    source = CheckpointWeights(checkpoint, ReferenceBackend())
    model = build_model(
        checkpoint.model_info, source, Stage(max_positions=64, start=start, end=end)
    )
    source.finish()
    return model


@pytest.mark.parametrize("name", ["qwen2-windows", "llama-tied"])
def test_stages_pass_hidden_states(name):
    model = make(CASES[name])
    checkpoint = StateDict(model)
    stages = [stage_of(checkpoint, start, end) for start, end in ((0, 1), (1, 2), (2, None))]
    assert [layer.index for stage in stages for layer in stage.kv_layers] == [0, 0, 0]
    ops, hidden = Ops(ReferenceOps()), None
    with torch.inference_mode():
        for stage in stages:
            ctx = whole_prompt(stage.kv_layers)
            hidden = stage.embed(ops, ctx) if hidden is None else hidden
            hidden = stage.forward(ops, hidden, ctx)
        logits = stages[-1].logits(ops, hidden, ctx).numpy()
    np.testing.assert_allclose(logits, hf_logits(model, IDS), rtol=1e-3, atol=1e-4)


def whole_prompt(layers):
    table = RequestTable(1, 64, [GroupSpec("full", 16, 1)])
    table.block_tables[0][:] = [[1, 2, 3, 4]]
    table.set_row(NewRow(0, 0, IDS.astype(np.int32), len(IDS), 0, SamplingParams(), []))
    count = np.array([len(IDS)], np.int32)
    plan = StepPlan(1, np.zeros(1, np.int32), count, count, np.zeros(1, np.uint8))
    numbers = KVFormat("float32")
    cache = KVCache.zeros(layers, 5, kv_layout(layers, numbers, 16), torch.float32, numbers)
    return step_context(plan, table, cache)


@pytest.mark.parametrize(("start", "end"), [(2, 2), (3, None), (0, 4), (-1, 2)])
def test_stages_outside_the_model_are_refused(start, end):
    with pytest.raises(ModelError, match="of a model of 3"):
        stage_of(StateDict(make(CASES["qwen2"])), start, end)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama-rope-llama3", "mistral-window", "qwen2-tied", "qwen3"])
def test_saved_by_transformers(name, dtype, tmp_path):
    make(CASES[name]).to(dtype).save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    checkpoint = open_checkpoint(resolve_source(ModelConfig(model=str(tmp_path)), LoadConfig()))
    backend = ReferenceBackend()
    got = solo_logits(backend.build(load(checkpoint, backend), LIMITS), IDS, [40])
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    want = hf_logits(model, IDS)
    assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()


def test_building_a_model_imports_no_torch():
    code = """
import sys
from galley.models.registry import ARCHITECTURES
import importlib
for architecture in ARCHITECTURES.values():
    importlib.import_module(architecture.module)
import galley.kernels.cpu
wrong = {"torch", "transformers", "starlette", "tokenizers"} & set(sys.modules)
assert not wrong, wrong
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_start_imports_no_op_of_other_models_and_no_structured_output():
    code = """
import sys, galley.engine.assembly, galley.kernels.cpu, galley.models.llama
from galley.kernels.ops import Ops, native_op
assert Ops(None).rms_norm and native_op("rms_norm")
names = {m for m in sys.modules if m.startswith(("galley.kernels.ops.", "galley.structured"))}
assert "galley.kernels.ops.rms_norm" in names, names
wrong = {f"galley.kernels.ops.{op}" for op in ("wkv7", "ssd_scan", "experts", "route")} & names
assert not wrong, wrong
assert not [name for name in names if "structured" in name], names
"""
    subprocess.run([sys.executable, "-c", code], check=True)
