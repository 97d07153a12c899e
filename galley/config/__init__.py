"""Configuration: frozen dataclasses whose fields are the flags, and `ModelInfo`."""

from galley.config.engine import (
    CacheConfig,
    DeviceConfig,
    EngineConfig,
    LoadConfig,
    LogprobsMode,
    ModelConfig,
    ObservabilityConfig,
    ParallelConfig,
    SchedulerConfig,
)
from galley.config.model_info import ModelInfo

__all__ = [
    "CacheConfig",
    "DeviceConfig",
    "EngineConfig",
    "LoadConfig",
    "LogprobsMode",
    "ModelConfig",
    "ModelInfo",
    "ObservabilityConfig",
    "ParallelConfig",
    "SchedulerConfig",
]
