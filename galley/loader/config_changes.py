"""Changes to a checkpoint's own config: --hf-config-path, --hf-overrides, --model-impl."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from galley.config.model_info import ModelImpl
from galley.loader.rope import with_rope_keys

_ROPE = ("rope_theta", "rope_scaling")


class ConfigChanges(msgspec.Struct, frozen=True):
    """The defaults change nothing.

    Attributes:
        directory: folder of config.json and generation_config.json; None = the checkpoint's.
        overrides: keys of config.json that win over the file's. An object replaces the whole
            object under its key.
        model_impl, trust_remote_code: as in `ModelInfo`.
    """

    directory: Path | None = None
    overrides: Mapping[str, Any] = {}
    model_impl: ModelImpl = "auto"
    trust_remote_code: bool = False

    def applied(self, config: dict[str, Any], where: str) -> dict[str, Any]:
        """`config` with the overrides. Input and output have the keys of `with_rope_keys`."""
        if not self.overrides:
            return config
        config = dict(config)
        if any(key in self.overrides for key in _ROPE):
            # Otherwise the file's newer spelling would win over the older one of the overrides.
            config.pop("rope_parameters", None)
        return with_rope_keys(config | dict(self.overrides), where)
