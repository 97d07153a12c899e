"""Modules whose names come from Galley, or raise with the reason for their absence."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

_ONE_HOST = "Galley runs one engine on one host"
_NO_MODULES = "Galley's models are programs of native kernels, not torch modules"

#: Names of vLLM's that have no counterpart → the reason.
MISSING: dict[str, str] = {
    "ModelRegistry": f"{_NO_MODULES}; a family is a function in galley/models/",
    "initialize_ray_cluster": f"{_ONE_HOST}; there is no Ray",
    "GuidedDecodingParams": "vLLM 0.32 has StructuredOutputsParams in its place",
    "PromptAdapterRequest": "vLLM 0.32 has none; LoRARequest adds an adapter",
    "add_dataset_parser": "`galley bench serve` and `throughput` make their prompts themselves",
    "get_samples": "`galley bench serve` and `throughput` make their prompts themselves",
    "StatLoggerBase": "LLM.get_metrics() and /metrics have the counts",
}


class MissingError(ImportError):
    """A name of vLLM's that Galley has no counterpart of; says why."""


def resolver(
    module: str, where: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], Any]]:
    """`__getattr__` and `__dir__` of a module.

    Args:
        module: its name.
        where: name → "module" or "module:name" that has it.
    """

    def get(name: str) -> Any:
        if name in where:
            source, _, attribute = where[name].partition(":")
            return getattr(importlib.import_module(source), attribute or name)
        if name in MISSING:
            raise MissingError(f"{module}.{name} has no counterpart in Galley: {MISSING[name]}.")
        raise AttributeError(f"module {module!r} has no attribute {name!r} (run by Galley)")

    def names() -> list[str]:
        return sorted(where)

    return get, names


def missing(what: str, reason: str) -> Any:
    """Raise MissingError for a call that has no counterpart."""
    raise MissingError(f"{what} has no counterpart in Galley: {reason}.")
