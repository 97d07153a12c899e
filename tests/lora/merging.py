"""Random adapters of all layers of any model, and the same model with them merged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from galley.config import LoadConfig, ModelConfig
from galley.layers.shapes import ShapeSource
from galley.layers.sites import SiteTensors
from galley.layers.weight_specs import Part
from galley.loader import read_model_info, resolve_source
from galley.models.decoder import Stage
from galley.models.registry import model_spec
from tests.lora.checkpoints import save_adapter
from tests.models.checkpoints import Case, make

RANK = 6
ALPHA = 9.0


class Base:
    """A model of tensors in a folder.

    Attributes:
        path: what is served.
        tensors: its weights as numbers, by the checkpoint's names.
        config: of config.json.
    """

    def __init__(
        self, path: Path, tensors: Mapping[str, np.ndarray], config: dict[str, Any]
    ) -> None:
        self.path, self.tensors, self.config = path, dict(tensors), config
        source = ShapeSource()
        info = read_model_info(resolve_source(ModelConfig(str(path)), LoadConfig()))
        model_spec(info).build(source, Stage(64))
        self.sites = [site for site in source.sites.all if self._has(site)]

    def _has(self, tensors: SiteTensors) -> bool:
        """Whether the checkpoint has the site's tensors under their own names."""
        return all(
            f"{part.name}.weight" in self.tensors and not part.turned and part.plus is None
            for part in tensors.parts
        )

    @property
    def tied(self) -> bool:
        return bool(self.config.get("tie_word_embeddings", False))


def save_case(case: Case, folder: Path) -> Base:
    """A tiny model of a family."""
    folder.mkdir()
    make(case).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    return Base(folder, load_file(folder / "model.safetensors"), config)


def random_tensors(base: Base, seed: int, size: float = 0.12) -> dict[str, np.ndarray]:
    """An adapter of all layers, as PEFT names its tensors. An embedding that is also the head is
    left out: merged, the head would change, too."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    for site in base.sites:
        if site.site.lookup and base.tied:
            continue
        for name in site.names:
            part = next(part for part in site.parts if part.name == name)
            n, k = _shape(site, part)
            prefix = f"base_model.model.{name}"
            kind = "embedding_{}" if site.site.lookup else "{}.weight"
            for letter, shape in (("A", (RANK, k)), ("B", (n, RANK))):
                tensors[f"{prefix}.lora_{kind.format(letter)}"] = rng.normal(0, size, shape).astype(
                    np.float32
                )
    return tensors


def _shape(site: SiteTensors, part: Part) -> tuple[int, int]:
    n, k = part.shape
    return (k, n) if site.site.lookup else (n, k)


def save(folder: Path, tensors: Mapping[str, np.ndarray]) -> Path:
    return save_adapter(folder, tensors, RANK, lora_alpha=ALPHA)


def save_merged(base: Base, adapter: Mapping[str, np.ndarray], folder: Path) -> Path:
    """The model with W + alpha / rank * B A, in float32."""
    merged = {name: np.array(values, np.float32) for name, values in base.tensors.items()}
    transposed = {part.name for site in base.sites for part in site.parts if part.transposed}
    for name, a in adapter.items():
        if "lora_" not in name or not ("lora_A" in name or "embedding_A" in name):
            continue
        module = name.removeprefix("base_model.model.").partition(".lora_")[0]
        b = adapter[name.replace("_A", "_B")]
        added = b @ a * np.float32(ALPHA / RANK)
        turned = "embedding_A" in name or module in transposed
        merged[f"{module}.weight"] += added.T if turned else added
    folder.mkdir()
    save_file(merged, folder / "model.safetensors")
    config = {key: value for key, value in base.config.items() if key != "quantization_config"}
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))
    return folder


def tokens(count: int, vocab: int, seed: int = 5) -> list[int]:
    ids: list[int] = torch.randint(3, vocab, (count,), generator=_generator(seed)).tolist()
    return ids


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
