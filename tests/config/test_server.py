"""Values of the server's flags that cannot be."""

from __future__ import annotations

from typing import Any

import pytest

from galley.config.server import ServerConfig
from galley.errors import ConfigError


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("port", -1),
        ("port", 70_000),
        ("api_server_count", 0),
        ("max_log_len", -1),
        ("ssl_cert_reqs", 3),
        ("h11_max_incomplete_event_size", 10),
        ("h11_max_header_count", 1),
        ("max_request_body_bytes", 0),
        ("shutdown_timeout", -1),
        ("engine_step_timeout", -1.0),
        ("max_engine_restarts", -1),
    ],
)
def test_out_of_range(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match="--" + field.replace("_", "-")) as caught:
        ServerConfig(**{field: value})
    assert caught.value.field == field


def test_contradictions() -> None:
    with pytest.raises(ConfigError, match="--ssl-certfile"):
        ServerConfig(ssl_keyfile="key.pem")
    with pytest.raises(ConfigError, match="--fingerprint-value"):
        ServerConfig(fingerprint_mode="custom")


def test_the_log_is_set_up_by_flags():
    server = ServerConfig(
        logging_config={"formatter": "json", "configure_logging": True, "log_level": "ERROR"},
        log_level="DEBUG",
        log_config_file="log.json",
    )
    assert server.logging_environment() == {
        "GALLEY_LOGGING_FORMAT": "json",
        "GALLEY_CONFIGURE_LOGGING": "1",
        "GALLEY_LOGGING_LEVEL": "DEBUG",
        "GALLEY_LOGGING_CONFIG_PATH": "log.json",
    }
    assert ServerConfig().logging_environment() == {}
    with pytest.raises(ConfigError, match="colour"):
        ServerConfig(logging_config={"colour": True}).logging_environment()
