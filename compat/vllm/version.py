"""The version whose names these modules have."""

from __future__ import annotations

from vllm import __version__, __version_tuple__

__all__ = ["__version__", "__version_tuple__"]
