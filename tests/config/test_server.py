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
        ("api_server_count", 2),
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
