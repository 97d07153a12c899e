"""Adapters that are damaged, hostile or not supported are refused with the reason."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from galley.config import ModelInfo
from galley.errors import ModelError
from galley.layers.sites import Sites
from galley.layers.weight_specs import Matrix, Part
from galley.loader.hf_info import info_of_directory
from galley.lora import AdapterFolder, pack_adapter, read_adapter
from tests.lora.checkpoints import WEIGHTS, llama, save_adapter, save_base

Q, K = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"


@pytest.fixture(scope="module")
def info(tmp_path_factory: pytest.TempPathFactory) -> ModelInfo:
    return info_of_directory(save_base(llama, tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def sites() -> Sites:
    sites = Sites()
    sites.add(Matrix((Part(Q, (48, 32)), Part(K, (20, 32)))), 0)
    return sites


def tensors(rank: int = 4, **changes: Any) -> dict[str, np.ndarray]:
    made = {
        f"base_model.model.{Q}.lora_A.weight": np.ones((rank, 32), np.float32),
        f"base_model.model.{Q}.lora_B.weight": np.ones((48, rank), np.float32),
    }
    for letter, value in changes.items():
        made[f"base_model.model.{Q}.lora_{letter}.weight"] = value
    return made


class Zeros:
    """The weights of a base model."""

    def rows(self, part: Part) -> np.ndarray:
        return np.zeros((part.num_rows, part.shape[1]), np.float32)

    def bias(self, part: Part) -> np.ndarray:
        return np.zeros(part.num_rows, np.float32)


def read(path: Path, info: ModelInfo, sites: Sites, bf16: bool = False) -> Any:
    modules = read_adapter(path, info, sites.shape.num_bytes(16, 4))
    return pack_adapter("adapter", modules, sites, 16, bf16, Zeros())


def test_what_is_read_is_what_was_written(tmp_path: Path, info: ModelInfo, sites: Sites) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4, 32)), rng.normal(size=(48, 4))
    given = tensors(A=a.astype(np.float32), B=b.astype(np.float32))
    adapter = read(save_adapter(tmp_path / "a", given, 4), info, sites)
    np.testing.assert_array_equal(adapter.matrix_a(0), given[f"base_model.model.{Q}.lora_A.weight"])
    np.testing.assert_array_equal(adapter.matrix_b(0), given[f"base_model.model.{Q}.lora_B.weight"])
    assert adapter.ranks.tolist() == [4, 0]
    assert adapter.scales.tolist() == [4.0, 0.0]
    folder = AdapterFolder(tmp_path / "packed")
    load = folder.add(adapter)
    assert folder.add(adapter) == load
    mapped = folder.map(load, sites.shape)
    np.testing.assert_array_equal(mapped.data, adapter.data)
    (tmp_path / "packed" / str(load)).write_bytes(b"GALLEYA1" + b"\xff" * 300)
    with pytest.raises(ModelError):
        folder.map(load, sites.shape)
    folder.remove(load)
    with pytest.raises(ModelError, match="not loaded"):
        folder.map(load, sites.shape)


NAN = np.full((4, 32), np.nan, np.float32)
CONFIGS = [
    ({"peft_type": "LOHA"}, "peft_type"),
    ({"use_dora": True}, "has no lora_magnitude_vector"),
    ({"use_dora": True, "lora_bias": True}, "use_dora with lora_bias is not supported"),
    ({"bias": "some"}, "bias"),
    ({"r": 0}, "r"),
    ({"r": 8}, "has rank 4, adapter_config.json says 8"),
    ({"r": True}, "r"),
    ({"lora_alpha": "much"}, "lora_alpha"),
    ({"lora_alpha": 1e300}, "lora_alpha"),
    ({"init_lora_weights": "pissa"}, "changes the base model"),
    ({"trainable_token_indices": [1]}, "trainable_token_indices"),
    ({"layer_replication": [[0, 1]]}, "layer_replication is not supported"),
    ({"rank_pattern": {"(a+)+b": 4}}, "too complicated"),
    ({"rank_pattern": {"(": 4}}, "is no pattern"),
    ({"rank_pattern": {"q_proj": "x"}}, "not a number"),
    ({"alpha_pattern": [1]}, "alpha_pattern"),
]


@pytest.mark.parametrize(("config", "message"), CONFIGS)
def test_configs_are_refused_by_name(
    tmp_path: Path, info: ModelInfo, sites: Sites, config: dict[str, Any], message: str
) -> None:
    path = save_adapter(tmp_path / "a", tensors(), 4, **config)
    with pytest.raises(ModelError, match=message):
        read(path, info, sites)


OTHERS = {
    "base_model.model.lm_head.weight": "added tokens are not supported",
    "base_model.model.model.norm.weight": "modules_to_save does not name norm",
    f"base_model.model.{Q}.bias": 'bias is "none"',
    f"base_model.model.{Q}.lora_B.bias": "lora_bias is not set",
    f"base_model.model.{Q}.lora_magnitude_vector": "use_dora is not set",
    "../../etc/passwd": "not of a LoRA adapter",
}


@pytest.mark.parametrize(("name", "message"), OTHERS.items())
def test_other_tensors_are_refused_by_name(
    tmp_path: Path, info: ModelInfo, sites: Sites, name: str, message: str
) -> None:
    given = tensors() | {name: np.ones((2, 2), np.float32)}
    with pytest.raises(ModelError, match=message):
        read(save_adapter(tmp_path / "a", given, 4), info, sites)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (tensors(A=NAN), "not finite"),
        (tensors(B=np.full((48, 4), np.inf, np.float32)), "not finite"),
        (tensors(A=np.ones((4, 33), np.float32)), r"lora_A of .* has shape \[4, 33\]"),
        (tensors(B=np.ones((47, 4), np.float32)), r"lora_B of .* has shape \[47, 4\]"),
        (tensors(B=np.ones((48, 4), np.int32)), "int32"),
        (tensors(B=np.ones(48, np.float32)), "float32 of"),
        (dict(list(tensors().items())[:1]), "has lora_A alone"),
        ({}, "has no tensors"),
    ],
)
def test_wrong_tensors_are_refused(
    tmp_path: Path, info: ModelInfo, sites: Sites, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        read(save_adapter(tmp_path / "a", given, 4), info, sites)


def test_a_large_rank_or_an_unknown_module_is_refused(
    tmp_path: Path, info: ModelInfo, sites: Sites
) -> None:
    path = save_adapter(tmp_path / "a", tensors(rank=17), 17)
    with pytest.raises(ModelError, match="LoRA rank 17 is greater than max_lora_rank 16"):
        read(path, info, sites)
    strange = {name.replace("q_proj", "z_proj"): value for name, value in tensors().items()}
    path = save_adapter(tmp_path / "b", strange, 4)
    with pytest.raises(ModelError, match=r"adapters of .*z_proj are not supported"):
        read(path, info, sites)


def test_numbers_beyond_bfloat16_are_refused(tmp_path: Path, info: ModelInfo, sites: Sites) -> None:
    given = tensors(B=np.full((48, 4), np.finfo(np.float32).max, np.float32))
    path = save_adapter(tmp_path / "a", given, 4)
    read(path, info, sites)
    with pytest.raises(ModelError, match="bfloat16"):
        read(path, info, sites, bf16=True)


def test_damaged_files_are_refused(tmp_path: Path, info: ModelInfo, sites: Sites) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        read(tmp_path / "absent", info, sites)
    path = save_adapter(tmp_path / "a", tensors(), 4)
    weights = path / WEIGHTS
    whole = weights.read_bytes()
    for damaged in (b"", whole[:100], whole[:-4], b"\xff" * 64, whole + b"\0"):
        weights.write_bytes(damaged)
        with pytest.raises(ModelError):
            read(path, info, sites)
    weights.write_bytes(whole + b"\0" * (40 << 20))
    with pytest.raises(ModelError, match="at most"):
        read(path, info, sites)
    weights.unlink()
    (path / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"adapter_model.bin is not supported"):
        read(path, info, sites)
    for text in ("", "[]", "{", json.dumps({"peft_type": "LORA"})):
        (path / "adapter_config.json").write_text(text)
        with pytest.raises(ModelError):
            read(path, info, sites)


@pytest.mark.parametrize("seed", range(4))
def test_hostile_files_are_refused(
    tmp_path: Path, info: ModelInfo, sites: Sites, seed: int
) -> None:
    """Bytes changed at random: the adapter is read, or refused with a reason; nothing else."""
    rng = np.random.default_rng(seed)
    path = save_adapter(tmp_path / "a", tensors(), 4, rank_pattern={"q_proj": 4})
    for file in (path / WEIGHTS, path / "adapter_config.json"):
        whole = file.read_bytes()
        header = min(len(whole), 400)  # where sizes and names are
        for _ in range(150):
            changed = bytearray(whole)
            for _ in range(rng.integers(1, 4)):
                changed[rng.integers(header)] = rng.choice([0, 34, 45, 57, 123, 125, 255])
            if rng.random() < 0.2:
                changed = changed[: rng.integers(len(changed))]
            file.write_bytes(changed)
            with contextlib.suppress(ModelError):
                read(path, info, sites)
        file.write_bytes(whole)
    read(path, info, sites)
