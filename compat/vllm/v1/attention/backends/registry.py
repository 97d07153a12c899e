"""Names of vLLM's attention backends, which the flag `attention_config` refuses."""

from __future__ import annotations

__all__ = ["AttentionBackendEnum"]


class _Names(type):
    def __getattr__(cls, name: str) -> str:
        if name.startswith("_"):
            raise AttributeError(name)
        return name


class AttentionBackendEnum(metaclass=_Names):
    """Each attribute is its own name."""
