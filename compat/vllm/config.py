"""Galley's configuration by the names of vLLM's, and configurations that are values of flags."""

from __future__ import annotations

from typing import Any

from galley.config import EngineConfig


class Settings(dict[str, Any]):
    """The value of a flag, by keywords; the flag says what it takes."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(settings)

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class PoolerConfig(Settings):
    """The flag `pooler_config`."""


class SpeculativeConfig(Settings):
    """The flag `speculative_config`."""


class StructuredOutputsConfig(Settings):
    """The flag `structured_outputs_config`."""


class ProfilerConfig(Settings):
    """The flag `profiler_config`."""


class CompilationConfig(Settings):
    """The flag `compilation_config`, which has no effect."""


class AttentionConfig(Settings):
    """The flag `attention_config`, which is refused."""


class KVTransferConfig(Settings):
    """The flag `kv_transfer_config`, which is refused."""


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
