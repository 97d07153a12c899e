"""Adapters of requests: read, checked and packed for the engine."""

from __future__ import annotations

import threading
from pathlib import Path

from galley.config import EngineConfig, ModelInfo
from galley.config.pooling import pooling_settings
from galley.errors import ConfigError
from galley.kernels.adapters import PackedAdapter
from galley.layers.shapes import ShapeSource
from galley.lora import AdapterFolder, CheckpointBase, pack_adapter, read_adapter
from galley.models.decoder import Stage
from galley.models.pooling_heads import add_sites, head_spec
from galley.models.registry import model_spec
from galley.request import Adapter, LoRARequest
from galley.runner.adapters import adapter_limits
from galley.runner.device import dense_format


class AdapterLoader:
    """Reads adapters of one model into the folder from which its engine maps them.

    Args:
        config: resolved, with --enable-lora.
        folder: of packed adapters.

    Raises:
        ConfigError: the model has no layers that adapters could add to, or none of a name in
            --lora-target-modules.
    """

    def __init__(self, config: EngineConfig, model_info: ModelInfo, folder: Path) -> None:
        self.folder = AdapterFolder(folder)
        self._config, self._model_info = config, model_info
        source = ShapeSource()
        model_spec(model_info).build(source, Stage(max_positions=1))
        self._sites = source.sites
        if config.model.runner == "pooling" or model_info.is_encoder or model_info.head:
            add_sites(
                head_spec(model_info, pooling_settings(config.model, model_info)), self._sites
            )
        if not self._sites.all:
            raise ConfigError(
                "--enable-lora: this implementation of the model has no layers for adapters.",
                field="enable_lora",
            )
        dense = dense_format(config.model.dtype, model_info.dtype)
        self._limits = adapter_limits(config.lora, dense)
        self._targets = self._sites.targets(config.lora.lora_target_modules)
        self._reading = threading.Lock()  # one in memory at a time

    def read(self, path: Path) -> PackedAdapter:
        """The adapter, packed. It may take a second. Raises ModelError."""
        shape = self._sites.shape
        # A file may also have the base model's own embedding and head.
        most = shape.num_bytes(self._limits.max_rank, 4) + 2 * sum(shape.copy_sizes(4))
        with self._reading:
            modules = read_adapter(path, self._model_info, most)
            if self._targets:
                modules = {
                    name: given
                    for name, given in modules.items()
                    if name.rpartition(".")[2] in self._targets
                }
            limits = self._limits
            return pack_adapter(
                *(str(path), modules, self._sites, limits.max_rank, limits.bf16),
                CheckpointBase(self._config),
            )

    def load(self, path: Path) -> int:
        """Put the adapter into the folder. Returns its load number. Raises ModelError."""
        return self.folder.add(self.read(path))


class OfflineAdapters:
    """The adapters of `LLM`, by name: each is read when it is first used."""

    def __init__(self, loader: AdapterLoader) -> None:
        self._loader = loader
        self._known: dict[tuple[str, int, str], Adapter] = {}

    def find(self, request: LoRARequest) -> Adapter:
        """Raises ModelError for an adapter that cannot be used."""
        key = request.lora_name, request.lora_int_id, request.lora_path
        adapter = self._known.get(key)
        if adapter is None or request.load_inplace:
            load = self._loader.load(Path(request.lora_path).expanduser())
            adapter = self._known[key] = Adapter(load, request)
        return adapter
