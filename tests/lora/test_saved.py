"""Adapters with an embedding or a head of their own (modules_to_save), alone and beside others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from galley import LLM, LoRARequest
from galley.errors import ConfigError, InvalidRequest
from tests.lora import merging
from tests.lora.checkpoints import save_adapter
from tests.lora.merging import ALPHA, RANK, Base
from tests.lora.test_merged import answers, open_model
from tests.models.checkpoints import CASES

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return merging.save_case(CASES["llama-rope-default"], tmp_path_factory.mktemp("base") / "b")


@pytest.fixture(scope="module")
def llm(base: Base) -> LLM:
    return open_model(base.path, enable_lora=True, max_lora_rank=8, max_loras=4)


def adapter_of(base: Base, saved: tuple[str, ...], seed: int) -> dict[str, np.ndarray]:
    """All linear layers of attention, and copies of the saved modules."""
    given = merging.random_tensors(base, seed)
    tensors = {name: values for name, values in given.items() if "self_attn" in name}
    rng = np.random.default_rng(seed)
    for module in saved:
        values = base.tensors[f"{module}.weight"]
        noise = rng.normal(0, 0.1, values.shape)
        tensors[f"base_model.model.{module}.weight"] = (values + noise).astype(np.float32)
    return tensors


def save(folder: Path, tensors: dict[str, np.ndarray], **config: Any) -> LoRARequest:
    path = save_adapter(folder, tensors, RANK, lora_alpha=ALPHA, **config)
    return LoRARequest(folder.name, hash(folder.name) % 1000 + 1, str(path))


@pytest.mark.parametrize("saved", [(EMBEDDING,), (HEAD,), (EMBEDDING, HEAD)])
def test_saved_modules_replace_those_of_the_model(
    base: Base, llm: LLM, tmp_path: Path, saved: tuple[str, ...]
) -> None:
    tensors = adapter_of(base, saved, 3)
    names = [module.rpartition(".")[2] for module in saved]
    request = save(tmp_path / "a", tensors, modules_to_save=names)
    own = {f"{module}.weight": tensors[f"base_model.model.{module}.weight"] for module in saved}
    changed = Base(base.path, base.tensors | own, base.config)
    wanted = answers(open_model(merging.save_merged(changed, tensors, tmp_path / "merged")))
    other = save(tmp_path / "b", adapter_of(base, (HEAD,), 4), modules_to_save=[HEAD])
    plain = answers(llm)
    for (ids, logprobs), (wanted_ids, numbers) in zip(
        answers(llm, lora_request=request), wanted, strict=True
    ):
        assert ids == wanted_ids
        np.testing.assert_allclose(logprobs, numbers, atol=1e-4)
    alone = [answers(llm, lora_request=each)[0] for each in (request, other)]
    mixed = answers(llm, lora_request=[request, None, other])
    assert (mixed[0], mixed[1]) == (alone[0], plain[1])
    assert mixed[2] == answers(llm, lora_request=[None, None, other])[2]


def test_the_reference_agrees(base: Base, llm: LLM, tmp_path: Path) -> None:
    given = merging.random_tensors(base, 5)
    tensors = adapter_of(base, (HEAD,), 5) | {k: v for k, v in given.items() if "embed" in k}
    request = save(tmp_path / "a", tensors, modules_to_save=[HEAD])
    reference = open_model(base.path, enable_lora=True, max_lora_rank=8, backend="reference")
    loras = [request, None, request]
    for (ids, logprobs), (wanted_ids, wanted) in zip(
        answers(llm, lora_request=loras), answers(reference, lora_request=loras), strict=True
    ):
        assert ids == wanted_ids
        np.testing.assert_allclose(logprobs, wanted, atol=1e-4)


def test_the_models_own_embedding_beside_an_adapter_is_not_read(
    base: Base, llm: LLM, tmp_path: Path
) -> None:
    """PEFT writes it where an adapter adds to the embedding; vLLM does not read it either."""
    tensors = adapter_of(base, (), 6)
    wanted = answers(llm, lora_request=save(tmp_path / "a", tensors))
    junk = np.full_like(base.tensors[f"{EMBEDDING}.weight"], 7.0)
    copies = {
        f"base_model.model.{EMBEDDING}.base_layer.weight": junk,
        f"base_model.model.{HEAD}.weight": junk,
    }
    assert answers(llm, lora_request=save(tmp_path / "b", tensors | copies)) == wanted


@pytest.mark.parametrize(
    ("module", "shape", "names", "message"),
    [
        (HEAD, (132, 64), [HEAD], "a vocabulary of another size is not supported"),
        (HEAD, (132, 64), [], "added tokens are not supported"),
        (f"{EMBEDDING}.base_layer", (132, 64), [], "added tokens are not supported"),
        ("model.norm", (131, 64), ["norm"], "are not supported"),
        ("model.layers.0.mlp.up_proj", (96, 64), ["up_proj"], "modules_to_save .* not supported"),
        (HEAD, (131, 64), "lm_head", "modules_to_save is not a list"),
    ],
)
def test_others_are_refused_by_name(
    base: Base,
    llm: LLM,
    tmp_path: Path,
    module: str,
    shape: tuple[int, int],
    names: Any,
    message: str,
) -> None:
    tensors = {f"base_model.model.{module}.weight": np.ones(shape, np.float32)}
    request = save(tmp_path / "a", adapter_of(base, (), 7) | tensors, modules_to_save=names)
    with pytest.raises(InvalidRequest, match=message):
        answers(llm, lora_request=request)


def test_target_modules_limit_what_acts(base: Base, llm: LLM, tmp_path: Path) -> None:
    given = adapter_of(base, (), 8)
    fewer = {name: values for name, values in given.items() if "o_proj" not in name}
    wanted = answers(llm, lora_request=save(tmp_path / "fewer", fewer))
    whole = save(tmp_path / "whole", given)
    assert answers(llm, lora_request=whole) != wanted
    flags: dict[str, Any] = {"enable_lora": True, "max_lora_rank": 8}
    limited = open_model(base.path, **flags, lora_target_modules=["qkv_proj"])
    assert answers(limited, lora_request=whole) == wanted
    [memory], [all_memory] = (one._core.executor.rpc("memory") for one in (limited, llm))
    assert 0 < memory["adapters"] < all_memory["adapters"] / 8
    with pytest.raises(ConfigError, match="lora_target_modules: no module is called 'x_proj'"):
        open_model(base.path, **flags, lora_target_modules=["x_proj"])
