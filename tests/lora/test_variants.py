"""DoRA, biases, and adapters of the parameters that hold all experts equal the merged model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from galley import LoRARequest
from tests.lora import merging
from tests.lora.checkpoints import (
    gpt2,
    is_transposed,
    linear_shapes,
    phi3,
    qwen2,
    random_adapter,
    random_model,
    save_adapter,
    save_base,
    uniform,
)
from tests.lora.merging import Base
from tests.lora.test_merged import answers, open_model
from tests.models.families import FAMILIES

SCALE = np.float32(2)  # 16 / 8
PREFIX = "base_model.model."
MODULES = "q_proj|v_proj|o_proj|gate_proj|down_proj|qkv_proj|gate_up_proj|c_attn|c_fc"


def vectors(
    module: Any, name: str, kind: str, tensors: dict[str, np.ndarray], rng: np.random.Generator
) -> None:
    """Add the vectors of a module to its adapter, and change its weights to the merged ones, as
    PEFT does."""
    key = f"{PREFIX}{name}"
    turned = is_transposed(module)
    weight = module.weight.detach().numpy()
    weight = weight.T if turned else weight
    merged = weight + SCALE * (tensors[f"{key}.lora_B.weight"] @ tensors[f"{key}.lora_A.weight"])
    n = len(weight)
    if kind == "use_dora":
        magnitude = rng.uniform(0.5, 2, n).astype(np.float32)
        tensors[f"{key}.lora_magnitude_vector"] = magnitude
        merged *= (magnitude / np.linalg.norm(merged, axis=1))[:, None]
    if kind == "lora_bias":
        own = rng.normal(size=n).astype(np.float32)
        tensors[f"{key}.lora_B.bias"] = own
        module.bias += torch.from_numpy(SCALE * own)
    if kind == "bias":
        tensors[f"{key}.base_layer.bias"] = rng.normal(size=n).astype(np.float32)
        module.bias.copy_(torch.from_numpy(tensors[f"{key}.base_layer.bias"]))
    module.weight.copy_(torch.from_numpy(merged.T if turned else merged))


CASES: dict[str, tuple[Callable[[], Any], str, dict[str, Any]]] = {
    "DoRA": (qwen2, "use_dora", {"use_dora": True}),
    "DoRA of fused layers": (phi3, "use_dora", {"use_dora": True}),
    "DoRA of transposed layers": (gpt2, "use_dora", {"use_dora": True}),
    "biases of B": (gpt2, "lora_bias", {"lora_bias": True}),
    "biases of layers": (gpt2, "bias", {"bias": "all"}),
}


@pytest.mark.parametrize("name", CASES)
def test_vectors_equal_the_merged_model(name: str, tmp_path: Path) -> None:
    make, kind, config = CASES[name]
    base = save_base(make, tmp_path / "base")
    model, rng = random_model(make), np.random.default_rng(4)
    tensors = random_adapter(linear_shapes(model, MODULES), uniform(8), seed=3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        for module in {key.removeprefix(PREFIX).partition(".lora_")[0] for key in list(tensors)}:
            vectors(model.get_submodule(module), module, kind, tensors, rng)
        model.save_pretrained(tmp_path / "merged")
        model.load_state_dict(before)
    path = save_adapter(tmp_path / "adapter", tensors, 8, **config)
    request = LoRARequest("a", 1, str(path))
    wanted = answers(open_model(tmp_path / "merged"))
    found = {}
    for flags in ({}, {"enforce_eager": True}, {"backend": "reference"}):
        llm = open_model(base, enable_lora=True, max_loras=2, **flags)
        found[str(flags)] = mixed = answers(llm, lora_request=[request, None, request])
        assert mixed[1] == answers(llm)[1]
        for i in (0, 2):
            assert mixed[i][0] == wanted[i][0]
            np.testing.assert_allclose(mixed[i][1], wanted[i][1], atol=1e-4)
    fused, eager, _ = found.values()
    assert fused == eager


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("name", ["qwen2-moe", "mixtral"])
def test_parameters_with_all_experts(name: str, old: bool, tmp_path: Path) -> None:
    """`old`: as PEFT before 0.18 took the dimensions of a parameter [experts, N, K]."""
    base = merging.save_case(FAMILIES[name], tmp_path / "base")
    rank, rng = merging.RANK, np.random.default_rng(5)
    given: dict[str, np.ndarray] = {}
    merged: dict[str, np.ndarray] = {}
    for site in base.sites:
        count = site.site.experts
        if count == 1:
            continue
        per_expert = len(site.parts) // count
        stack = site.parts[0].stack
        assert stack is not None
        _, n, k = stack.shape
        inputs, outputs = (n, k) if old else (k, n)
        a = rng.normal(0, 0.12, (count * rank, inputs)).astype(np.float32)
        b = rng.normal(0, 0.12, (outputs, count * rank)).astype(np.float32)
        module = stack.name.rpartition(".")[0].replace("block_sparse_moe", "mlp")
        inner = ".base_layer" if per_expert == 2 else ""
        given[f"{PREFIX}{module}{inner}.lora_A.weight"] = a
        given[f"{PREFIX}{module}{inner}.lora_B.weight"] = b
        # As PEFT's ParamWrapper has it.
        split = (b.reshape(-1, rank, count), a.reshape(count, rank, -1))
        added = np.einsum("ore,eri->eio" if old else "ore,eri->eoi", *split)
        for i, part in enumerate(site.parts):
            rows = slice(*part.stack.outputs) if part.stack else slice(None)
            delta = added[i // per_expert][rows] * np.float32(merging.ALPHA / rank)
            merged[f"{part.name}.weight"] = base.tensors[f"{part.name}.weight"] + delta
    assert given
    path = save_adapter(
        *(tmp_path / "adapter", given, rank),
        lora_alpha=merging.ALPHA,
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    )
    changed = Base(base.path, base.tensors | merged, base.config)
    wanted = answers(open_model(merging.save_merged(changed, {}, tmp_path / "merged")))
    llm = open_model(base.path, enable_lora=True, max_lora_rank=8)
    plain = answers(llm)
    found = answers(llm, lora_request=LoRARequest("a", 1, str(path)))
    assert found != plain
    for (ids, logprobs), (wanted_ids, wanted_logprobs) in zip(found, wanted, strict=True):
        assert ids == wanted_ids
        np.testing.assert_allclose(logprobs, wanted_logprobs, atol=1e-4)
