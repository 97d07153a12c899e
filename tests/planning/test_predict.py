"""Predictions and advice, by hand-made machines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from galley.cli.main import main
from galley.planning import advice
from galley.planning.machine import Machine, device
from galley.planning.predict import DoesNotFit, predict
from galley.planning.program import PlannedModel, planned_model
from galley.planning.simulate import Workload
from tests.small_model import small_model

LLAMA_70B = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
}


@pytest.fixture(scope="module")
def small() -> PlannedModel:
    return planned_model({"model": str(small_model())})


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama-70b")
    (folder / "config.json").write_text(json.dumps(LLAMA_70B))
    return folder


def test_more_at_once_is_more_in_all_and_slower_for_each(small: PlannedModel) -> None:
    found = [predict(small, device("l4"), Workload(128, 32, n)) for n in (1, 8, 64)]
    assert [f.output_tokens for f in found] == sorted(f.output_tokens for f in found)
    assert [f.tpot for f in found] == sorted(f.tpot for f in found)
    again = predict(small, device("l4"), Workload(128, 32, 8))
    assert msgspec.to_builtins(again) == msgspec.to_builtins(found[1])


def test_the_smallest_number_of_devices_that_fits(large: Path) -> None:
    """Checklist 284: weights of 141 GB take two H100, not eight; four engines share the machine."""
    model = planned_model({"model": str(large)})
    assert not model.has_weights
    assert model.weight_bytes == pytest.approx(141.1e9, rel=0.01)
    with pytest.raises(DoesNotFit, match="no memory is left for the KV cache"):
        predict(model, device("h100"), Workload(512, 32, 4))
    found = predict(model, device("8xh100"), Workload(512, 32, 16))
    assert (found.ranks, found.engines) == (2, 4)
    # One engine of all eight answers a single request sooner, and serves many more slowly: every
    # layer exchanges among all of them.
    whole = msgspec.structs.replace(device("h100"), devices=8, memory=20_000_000_000)
    for at_once, faster in ((4, False), (512, True)):
        load = Workload(256, 8, at_once, requests=at_once)
        alone, four = predict(model, whole, load), predict(model, device("8xh100"), load)
        assert (alone.ranks, alone.engines) == (8, 1)
        assert (four.output_tokens > alone.output_tokens) == faster
    text = [flag.text for flag in advice.flags(found, device("8xh100"), advice.Goal())]
    assert "--tensor-parallel-size 2" in text


def test_goals_costs_and_replicas(small: PlannedModel) -> None:
    machine = device("l4")
    most = advice.largest_load(small, machine, Workload(128, 32, 1), advice.Goal(ttft=40), {})
    assert most is not None
    assert most.ttft["p99"] <= 0.040
    assert advice.largest_load(small, machine, Workload(128, 32, 1), advice.Goal(0.1), {}) is None
    assert advice.replicas(2.5 * most.requests, most) == 3
    assert advice.cost_per_million(3.6, 1000) == pytest.approx(1.0)


def test_a_plan_is_printed_and_is_json(capsys: pytest.CaptureFixture[str], large: Path) -> None:
    argv = ["plan", str(large), "--machine", "8xh100", "--rate", "10", "--slo-ttft", "2000"]
    argv += ["--prompt", "128", "--output", "32"]
    assert main([*argv, "--price-per-hour", "20"]) == 0
    text = capsys.readouterr().out
    for name in ("fits", "limited by", "throughput", "TTFT", "ITL", "goal", "replicas", "cost"):
        assert f"\n{name} " in text, text
    assert "--tensor-parallel-size 2" in text
    assert main([*argv, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["replicas"] == advice.replicas(10, _Rate(facts["largest_load"]["requests"]))  # type: ignore[arg-type]


def test_what_if_batches_were_static(capsys: pytest.CaptureFixture[str], large: Path) -> None:
    found = []
    for batching in ("continuous", "static"):
        argv = ["--machine", "8xh100", "--rate", "3", "--prompt", "64", "--output", "32", "--json"]
        assert main(["plan", str(large), *argv, "--batching", batching]) == 0
        found.append(json.loads(capsys.readouterr().out)["ttft"]["mean"])
    assert found[1] > 1.5 * found[0]


class _Rate(msgspec.Struct):
    requests: float


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--machine", "h1000"], "--machine h1000: no such machine"),
        (["--prompt", "0"], "--prompt must be at least 1"),
        (["--rate", "-1"], "--rate must not be negative"),
        (["--context", "100"], "--context 100 is less than --prompt and --output"),
        (["--prompt", "9000"], "the model supports 8192"),
        (["--verify"], "--verify serves on this machine"),
        (["--shared", "512"], "--shared must be less than --prompt"),
    ],
)
def test_bad_input(capsys: pytest.CaptureFixture[str], argv: list[str], says: str) -> None:
    machine: list[Any] = [] if "--machine" in argv else ["--machine", "l4"]
    assert main(["plan", str(small_model()), *machine, *argv]) == 2
    assert says in capsys.readouterr().err


def test_a_model_that_generates_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({**LLAMA_70B, "architectures": ["LlamaModel"]})
    )
    assert main(["plan", str(tmp_path), "--machine", "8xh100"]) == 2
    assert "a plan is for models that generate" in capsys.readouterr().err


def test_a_machine_that_is_too_small(small: PlannedModel) -> None:
    tiny = Machine("m", "m", 2**20, 1e10, {"f32": 1e11})
    with pytest.raises(DoesNotFit, match="does not fit"):
        predict(small, tiny, Workload())
