"""Configuration: frozen dataclasses whose fields are the flags, and the facts of a model."""

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
from galley.config.facts import ModelFacts

__all__ = [
    "CacheConfig",
    "DeviceConfig",
    "EngineConfig",
    "LoadConfig",
    "LogprobsMode",
    "ModelConfig",
    "ModelFacts",
    "ObservabilityConfig",
    "ParallelConfig",
    "SchedulerConfig",
]
