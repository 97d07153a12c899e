"""Adapters of classifiers: their own head, or one that they add to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from galley import LLM, LoRARequest, PoolingParams
from galley.errors import InvalidRequest
from tests.lora.checkpoints import save_adapter
from tests.models.checkpoints import Case, make
from tests.models.encoders import ROBERTA
from tests.models.test_pooling_heads import LABELS, PAD, SEQUENCE

#: A model, its query projection of the first layer, and its head.
CASES = {
    "llama": (
        Case("Llama", {**LABELS, **PAD}, SEQUENCE),
        "model.layers.0.self_attn.q_proj",
        "score",
    ),
    "roberta": (
        Case("Roberta", {**ROBERTA, **LABELS}, SEQUENCE),
        "roberta.encoder.layer.0.attention.self.query",
        "classifier",
    ),
}
PROMPTS: list[Any] = [
    {"prompt_token_ids": [(5 * i + n) % 90 + 5 for i in range(n)]} for n in (9, 4)
]
PREFIX = "base_model.model."


def classify(path: Path, loras: Any = None) -> list[np.ndarray]:
    llm = LLM(str(path), dtype="float32", skip_tokenizer_init=True, enable_lora=True, max_loras=2)
    params = PoolingParams(use_activation=False)
    outputs = llm.classify(PROMPTS, pooling_params=params, use_tqdm=False, lora_request=loras)
    return [np.array(output.outputs.probs) for output in outputs]


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_a_head_of_the_adapter(name: str, added: bool, tmp_path: Path) -> None:
    """`added`: B A is added to the head's matrices; otherwise they are the adapter's own."""
    case, query, head = CASES[name]
    make(case).save_pretrained(tmp_path / "base")
    base = load_file(tmp_path / "base" / "model.safetensors")
    rng, tensors, merged = np.random.default_rng(2), {}, dict(base)

    def add(module: str) -> None:
        n, k = base[f"{module}.weight"].shape
        a, b = rng.normal(0, 0.3, (8, k)), rng.normal(0, 0.3, (n, 8))
        tensors[f"{PREFIX}{module}.lora_A.weight"] = a.astype(np.float32)
        tensors[f"{PREFIX}{module}.lora_B.weight"] = b.astype(np.float32)
        merged[f"{module}.weight"] = (base[f"{module}.weight"] + 2 * b @ a).astype(np.float32)

    add(query)
    for tensor in [tensor for tensor in base if tensor.startswith(f"{head}.")]:
        if not added:
            own = rng.normal(size=base[tensor].shape).astype(np.float32)
            tensors[f"{PREFIX}{tensor}"] = merged[tensor] = own
        elif tensor.endswith(".weight"):
            add(tensor.removesuffix(".weight"))
    path = save_adapter(
        tmp_path / "a", tensors, 8, modules_to_save=None if added else ["classifier", "score"]
    )
    (tmp_path / "merged").mkdir()
    save_file(merged, tmp_path / "merged" / "model.safetensors")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "merged" / "config.json").write_text(json.dumps(config))
    request = LoRARequest("a", 1, str(path))
    wanted, plain = classify(tmp_path / "merged"), classify(tmp_path / "base")
    first, second = classify(tmp_path / "base", [request, None])
    np.testing.assert_allclose(first, wanted[0], atol=1e-4)
    np.testing.assert_array_equal(second, plain[1])
    assert np.abs(first - plain[0]).max() > 1e-2


def test_a_head_with_other_labels_is_refused(tmp_path: Path) -> None:
    make(CASES["llama"][0]).save_pretrained(tmp_path / "base")
    hidden = load_file(tmp_path / "base" / "model.safetensors")["score.weight"].shape[1]
    own = {f"{PREFIX}score.weight": np.ones((5, hidden), np.float32)}
    path = save_adapter(tmp_path / "a", own, 8, modules_to_save=["score"])
    with pytest.raises(InvalidRequest, match=r"score has shape \[5, .*the model's is \[3,"):
        classify(tmp_path / "base", LoRARequest("a", 1, str(path)))
