"""`StructuredOutputsSettings`: the values of --structured-outputs-config, checked."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Literal, get_args

import msgspec

from galley.config.extras import install_command
from galley.errors import ConfigError
from galley.validation import locate

#: The choice of "auto": measured, it compiles faster and refuses less, and xgrammar lets invalid
#: answers through (docs/structured-output.md).
_AUTO = "guidance"

BackendName = Literal["auto", "guidance", "xgrammar"]
BACKEND_NAMES = get_args(BackendName)


class StructuredOutputsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """vLLM's `StructuredOutputsConfig`.

    Attributes:
        backend: the library that makes masks.
        disable_any_whitespace: JSON without optional white space.
        disable_additional_properties: JSON objects have no properties but those of their schema.
        enable_in_reasoning: constraints also apply to reasoning.
    """

    backend: BackendName = "auto"
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    enable_in_reasoning: bool = False

    @property
    def chosen_backend(self) -> str:
        """The library, for "auto" too."""
        return _AUTO if self.backend == "auto" else self.backend


def structured_outputs_settings(given: Mapping[str, Any]) -> StructuredOutputsSettings:
    """Raises ConfigError naming the key, or the package that the backend needs."""
    for key in ("reasoning_parser", "reasoning_parser_plugin"):
        if given.get(key):
            raise ConfigError(
                f"--structured-outputs-config.{key}: use --{key.replace('_', '-')}.",
                field="structured_outputs_config",
            )
    backend = given.get("backend", "auto")
    if backend not in BACKEND_NAMES:
        raise ConfigError(
            f"--structured-outputs-config.backend must be one of {', '.join(BACKEND_NAMES)}; got "
            f"{backend!r}.",
            field="structured_outputs_config",
        )
    try:
        settings = msgspec.convert(dict(given), StructuredOutputsSettings)
    except msgspec.ValidationError as error:
        what, path = locate(str(error))
        key = f".{path}" if path else ""
        raise ConfigError(
            f"--structured-outputs-config{key}: {what[:1].lower()}{what[1:]}.",
            field="structured_outputs_config",
        ) from None
    if settings.backend == "xgrammar" and find_spec("xgrammar") is None:
        raise ConfigError(
            "--structured-outputs-config.backend xgrammar needs a package that is not installed: "
            f"{install_command('xgrammar')}",
            field="structured_outputs_config",
        )
    return settings
