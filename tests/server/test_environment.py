"""Variables of the server."""

from __future__ import annotations

import pytest

from galley.config.server import ServerConfig
from galley.errors import ConfigError
from galley.server.environment import read_environment


def test_defaults() -> None:
    environment = read_environment({})
    caps = environment.caps
    assert (caps.n, caps.prompts, caps.stop_strings, caps.bad_words) == (16384, 1024, 4, 128)
    assert (environment.keep_alive, environment.stats_interval) == (5, 10)
    assert environment.apply(ServerConfig()) == ServerConfig()


def test_galley_wins_over_vllm_and_flags_over_both() -> None:
    env = {"VLLM_API_KEY": "a", "GALLEY_API_KEY": "b", "VLLM_MAX_N_SEQUENCES": "3"}
    environment = read_environment(env)
    assert environment.apply(ServerConfig()).api_key == ("b",)
    assert environment.apply(ServerConfig(api_key=("c",))).api_key == ("c",)
    assert environment.caps.n == 3


@pytest.mark.parametrize("value", ["0", "-1", "many", "nan", "inf"])
def test_bad_values_name_the_variable(value: str) -> None:
    with pytest.raises(ConfigError, match="VLLM_HTTP_TIMEOUT_KEEP_ALIVE"):
        read_environment({"VLLM_HTTP_TIMEOUT_KEEP_ALIVE": value})
