"""How prompts become vectors: what a checkpoint declares, and what --pooler-config changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from galley.errors import ConfigError
from galley.request import Pooling

if TYPE_CHECKING:
    from galley.config.engine import ModelConfig
    from galley.config.model_info import ModelInfo

#: Key of --pooler-config → field of `PoolingSettings`.
_KEYS = {
    "pooling_type": "pooling",
    "seq_pooling_type": "pooling",
    "use_activation": "normalize",
    "normalize": "normalize",
}


@dataclass(frozen=True)
class PoolingSettings:
    """Defaults of the requests that pool.

    Attributes:
        pooling: final hidden state of the first token (CLS), of the LAST, or the MEAN of all.
        normalize: scale vectors to length 1.
        matryoshka: whether the first components of a vector are a vector themselves.
        matryoshka_dimensions: numbers of components that are meant to be used; () = any.
        width: components of a whole vector; None = unknown.
    """

    pooling: Pooling = "LAST"
    normalize: bool = True
    matryoshka: bool = False
    matryoshka_dimensions: tuple[int, ...] = ()
    width: int | None = None

    def fault_in(self, dimensions: int) -> str | None:
        """Why vectors cannot have so many components, as a sentence; None: they can."""
        if not self.matryoshka:
            return (
                "this model does not support matryoshka representation: changing the output "
                "dimensions leads to poor results."
            )
        if self.matryoshka_dimensions:
            if dimensions in self.matryoshka_dimensions:
                return None
            listed = ", ".join(map(str, self.matryoshka_dimensions))
            return f"this model's vectors can have {listed} dimensions, got {dimensions}."
        if self.width is None or not 1 <= dimensions <= self.width:
            return f"dimensions must be in 1 … {self.width}, got {dimensions}."
        return None


def runner_of(model: ModelConfig, model_info: ModelInfo) -> Literal["generate", "pooling"]:
    """The engine's task: --runner, or the one that --convert and the checkpoint ask for.

    Raises ConfigError for flags that contradict each other.
    """
    runner = model.runner
    if model_info.is_encoder:
        if runner == "generate":
            raise ConfigError(
                f"--runner generate: {model_info.architecture} is an encoder; it gives vectors.",
                field="runner",
            )
        return "pooling"
    if runner == "auto":
        pools = model.convert == "embed" or model_info.pooling is not None
        runner = "pooling" if pools and model.convert != "none" else "generate"
    if runner == "generate" and model.convert == "embed":
        raise ConfigError(
            "--convert embed needs --runner pooling: a generating model is used as it is.",
            field="convert",
        )
    if runner == "pooling" and model.convert == "none" and model_info.pooling is None:
        raise ConfigError(
            f"--runner pooling needs --convert embed: {model_info.architecture} generates text.",
            field="convert",
        )
    if runner == "generate" and model.pooler_config:
        raise ConfigError("--pooler-config needs --runner pooling.", field="pooler_config")
    return runner


def pooling_settings(model: ModelConfig, model_info: ModelInfo) -> PoolingSettings:
    """The checkpoint's settings, changed by --pooler-config. Raises ConfigError naming the key."""
    config = model_info.hf_config
    default = PoolingSettings("CLS" if model_info.is_encoder else "LAST")
    listed = config.get("matryoshka_dimensions")
    width = config.get("hidden_size")
    settings = dataclasses.replace(
        model_info.pooling or default,
        matryoshka=bool(config.get("is_matryoshka") or listed),
        matryoshka_dimensions=tuple(listed) if isinstance(listed, list) else (),
        width=width if isinstance(width, int) else None,
    )
    return dataclasses.replace(settings, **_changes(model.pooler_config))


def _changes(given: Mapping[str, object]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for key, value in given.items():
        if value is None:
            continue
        field = _KEYS.get(key)
        if field is None:
            raise ConfigError(
                f"--pooler-config: {key} is not supported (supported: {', '.join(_KEYS)}).",
                field="pooler_config",
            )
        if field == "pooling" and value not in get_args(Pooling):
            raise ConfigError(
                f"--pooler-config: {key} must be one of {', '.join(get_args(Pooling))}; "
                f"got {value!r}.",
                field="pooler_config",
            )
        if field == "normalize" and not isinstance(value, bool):
            raise ConfigError(
                f"--pooler-config: {key} must be true or false, got {value!r}.",
                field="pooler_config",
            )
        changes[field] = value
    return changes
