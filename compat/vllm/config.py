"""`VllmConfig`: Galley's configuration under the names of vLLM's sections."""

from __future__ import annotations

from typing import Any

from galley.config import EngineConfig


class VllmConfig:
    """`model_config`, `cache_config`, `scheduler_config` … are the sections of an `EngineConfig`,
    whose fields have vLLM's names.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config

    def __getattr__(self, name: str) -> Any:
        section = name.removesuffix("_config")
        if section == name or not hasattr(self._config, section):
            raise AttributeError(f"VllmConfig.{name} has no counterpart in Galley.")
        return getattr(self._config, section)
