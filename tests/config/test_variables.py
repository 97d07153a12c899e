"""Environment variables that do not exist are reported, or refused."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest

from galley.config.resolve import from_kwargs
from galley.config.variables import galley_variables, unknown_variables, vllm_variables
from galley.errors import ConfigError

ROOT = Path(__file__).parents[2]


def test_every_variable_of_vllm_is_known() -> None:
    data = json.loads((ROOT / "docs/generate/vllm/variables.json").read_text())
    names = {v["name"] for v in data["variables"]} | set(data["internal"])
    assert {n for n in names if n.startswith("VLLM_")} == vllm_variables()


def test_every_variable_that_the_program_reads_is_known() -> None:
    source = "\n".join(p.read_text() for p in (ROOT / "galley").rglob("*.py"))
    read = set(re.findall(r'"((?:GALLEY|VLLM)_[A-Z_]+)"', source))
    assert read
    assert read <= vllm_variables() | galley_variables()


def test_unknown_variables_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    env = {"VLLM_API_KEYS": "x", "GALLEY_MAKE_IT_FAST": "1", "VLLM_API_KEY": "y", "PATH": "z"}
    with caplog.at_level(logging.WARNING):
        from_kwargs({}, "server", env)
    assert caplog.messages == [
        "unknown environment variable GALLEY_MAKE_IT_FAST: it has no effect.",
        "unknown environment variable VLLM_API_KEYS: it has no effect. Did you mean VLLM_API_KEY?",
    ]
    # The value of a variable is never reported: it may be a secret.
    assert not any(word == "x" for message in caplog.messages for word in message.split())


def test_they_can_be_refused() -> None:
    strict = {"fail_on_environ_validation": True}
    with pytest.raises(ConfigError, match="VLLM_NO_SUCH_THING"):
        from_kwargs(strict, "server", {"VLLM_NO_SUCH_THING": "1"})
    from_kwargs(strict, "server", {"VLLM_LOGGING_LEVEL": "INFO", "GALLEY_API_KEY": "x"})
    assert unknown_variables({"OMP_NUM_THREADS": "2"}) == []
