"""Changes to a checkpoint's own config: --hf-config-path, --hf-overrides, --model-impl,
--quantization."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from galley.config.model_info import ModelImpl
from galley.config.registries import ONLINE_METHODS
from galley.loader.rope import with_rope_keys

_ROPE = ("rope_theta", "rope_scaling")


class ConfigChanges(msgspec.Struct, frozen=True):
    """The defaults change nothing.

    Attributes:
        directory: folder of config.json and generation_config.json; None = the checkpoint's.
        overrides: keys of config.json that win over the file's. An object replaces the whole
            object under its key.
        model_impl, trust_remote_code: as in `ModelInfo`.
        quantization: --quantization; it quantises a checkpoint that is not quantised.
        classify: a model that generates text has a classifier as its head (--convert classify).
    """

    directory: Path | None = None
    overrides: Mapping[str, Any] = {}
    model_impl: ModelImpl = "auto"
    trust_remote_code: bool = False
    quantization: str | None = None
    classify: bool = False

    def online(self, stored: str | None) -> str | None:
        """How weights are quantised while they are loaded, of a checkpoint whose own quantisation
        is `stored`. A name that contradicts the checkpoint is refused elsewhere (`resolve`)."""
        return self.quantization if stored is None and self.quantization in ONLINE_METHODS else None

    def applied(self, config: dict[str, Any], where: str) -> dict[str, Any]:
        """`config` with the overrides. Input and output have the keys of `with_rope_keys`."""
        if not self.overrides:
            return config
        config = dict(config)
        if any(key in self.overrides for key in _ROPE):
            # Otherwise the file's newer spelling would win over the older one of the overrides.
            config.pop("rope_parameters", None)
        return with_rope_keys(config | dict(self.overrides), where)
