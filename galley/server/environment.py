"""Environment variables of the server, read in one place; `GALLEY_*` wins over `VLLM_*`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from galley.config.server import ServerConfig
from galley.errors import ConfigError
from galley.server.protocol.generation import Caps


@dataclass(frozen=True)
class Environment:
    """Values of the variables.

    Attributes:
        caps: VLLM_MAX_N_SEQUENCES, VLLM_MAX_COMPLETION_PROMPTS, VLLM_MAX_STOP_STRINGS,
            VLLM_MAX_NUM_BAD_WORDS, VLLM_MAX_BAD_WORDS_TOTAL_TOKENS.
        api_key: VLLM_API_KEY, for a server without --api-key.
        store_responses: VLLM_ENABLE_RESPONSES_API_STORE.
        update_adapters: VLLM_ALLOW_RUNTIME_LORA_UPDATING.
        dev_mode: VLLM_SERVER_DEV_MODE.
        any_model_name: VLLM_SKIP_MODEL_NAME_VALIDATION.
        keep_alive: VLLM_HTTP_TIMEOUT_KEEP_ALIVE, seconds.
        stats_interval: VLLM_LOG_STATS_INTERVAL, seconds.
    """

    caps: Caps = field(default_factory=Caps)
    api_key: str | None = None
    any_model_name: bool = False
    store_responses: bool = False
    update_adapters: bool = False
    dev_mode: bool = False
    keep_alive: int = 5
    stats_interval: float = 10.0

    def apply(self, server: ServerConfig) -> ServerConfig:
        """The configuration, completed by the environment."""
        if self.api_key and not server.api_key:
            return dataclasses.replace(server, api_key=(self.api_key,))
        return server


def read_environment(env: Mapping[str, str] = os.environ) -> Environment:
    """Raises ConfigError naming a variable whose value cannot be used."""
    caps = Caps()
    return Environment(
        caps=Caps(
            n=_number(env, "MAX_N_SEQUENCES", caps.n),
            prompts=_number(env, "MAX_COMPLETION_PROMPTS", caps.prompts),
            stop_strings=_number(env, "MAX_STOP_STRINGS", caps.stop_strings),
            bad_words=_number(env, "MAX_NUM_BAD_WORDS", caps.bad_words),
            bad_words_tokens=_number(env, "MAX_BAD_WORDS_TOTAL_TOKENS", caps.bad_words_tokens),
        ),
        api_key=_text(env, "API_KEY"),
        any_model_name=_switch(env, "SKIP_MODEL_NAME_VALIDATION"),
        update_adapters=_switch(env, "ALLOW_RUNTIME_LORA_UPDATING"),
        dev_mode=_switch(env, "SERVER_DEV_MODE"),
        store_responses=_switch(env, "ENABLE_RESPONSES_API_STORE"),
        keep_alive=_number(env, "HTTP_TIMEOUT_KEEP_ALIVE", 5),
        stats_interval=float(_number(env, "LOG_STATS_INTERVAL", 10)),
    )


def _text(env: Mapping[str, str], name: str) -> str | None:
    return env.get(f"GALLEY_{name}") or env.get(f"VLLM_{name}") or None


def _switch(env: Mapping[str, str], name: str) -> bool:
    return _text(env, name) in ("1", "true", "True")


def _number(env: Mapping[str, str], name: str, default: int) -> int:
    text = _text(env, name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 2**31:
        raise ConfigError(f"VLLM_{name} must be a number above 0, got {text!r}.", field=name)
    return max(int(value), 1)
