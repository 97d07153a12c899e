"""Methods of vLLM's `LLM` that are not supported, and the reasons."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

_ONE_ENGINE = "there is no such object here; LLM.config has the configuration"
_WEIGHTS = "weight updates are not supported yet"

REASONS = {
    **dict.fromkeys(("llm_engine", "model_config"), _ONE_ENGINE),
    **dict.fromkeys(("update_weights", "start_weight_update", "finish_weight_update"), _WEIGHTS),
    "collective_rpc": "there is one engine, in this process",
    "apply_model": "the model is no torch module",
}


class UnsupportedMethods:
    """Base class whose AttributeErrors give the reason for an unsupported method."""

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            what = f"{type(self).__name__!r} object has no attribute {name!r}"
            raise AttributeError(f"{what}: {REASONS[name]}" if name in REASONS else what)
