"""Log set-up: levels, form, variables."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from galley.errors import ConfigError
from galley.observability.logging import (
    JsonFormatter,
    LineFormatter,
    configure_logging,
    silence_access_log,
)

NAMES = ("galley", "uvicorn", "uvicorn.access")


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in NAMES]
    before = [(g.handlers[:], g.propagate, g.level, g.filters[:]) for g in loggers]
    yield
    for logger, (handlers, propagate, level, filters) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.propagate, logger.filters[:] = handlers, propagate, filters
        logger.setLevel(level)


def record(name: str = "galley.server.main", text: str = "hello") -> logging.LogRecord:
    return logging.LogRecord(name, logging.INFO, "f.py", 1, text, None, None)


def test_a_line() -> None:
    line = LineFormatter("", color=False).format(record())
    level, date, time, name, text = line.split(" ", 4)
    assert (level, name, text) == ("INFO", "[server.main]", "hello")
    assert len(date) == 5
    assert len(time) == 8
    assert "\033[32mINFO" in LineFormatter("", color=True).format(record())
    assert LineFormatter("(n1) ", color=False).format(record()).startswith("(n1) INFO")
    assert LineFormatter("", color=False).format(record(text="a\nb")).endswith("a\n    b")
    assert "[uvicorn] " in LineFormatter("", color=False).format(record("uvicorn.error"))


@pytest.mark.parametrize(
    ("env", "level"),
    [
        ({}, logging.INFO),
        ({"VLLM_LOGGING_LEVEL": "debug"}, logging.DEBUG),
        ({"VLLM_LOGGING_LEVEL": "DEBUG", "GALLEY_LOGGING_LEVEL": "ERROR"}, logging.ERROR),
        ({"GALLEY_LOGGING_LEVEL": "TRACE"}, 5),
    ],
)
def test_levels(env: dict[str, str], level: int) -> None:
    configure_logging(env)
    assert logging.getLogger("galley").level == level
    assert logging.getLogger("galley.server").isEnabledFor(level)


def test_it_may_be_called_again_and_writes_each_line_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    for _ in range(2):
        configure_logging({"VLLM_LOGGING_STREAM": "ext://sys.stderr"})
    logging.getLogger("galley.x").info("once")
    logging.getLogger("galley.x").debug("never")
    assert stream.getvalue().count("once") == 1
    assert "never" not in stream.getvalue()


def test_logging_can_be_left_alone() -> None:
    logging.getLogger("galley").handlers[:] = []
    configure_logging({"VLLM_CONFIGURE_LOGGING": "0", "VLLM_LOGGING_LEVEL": "nonsense"})
    assert logging.getLogger("galley").handlers == []


def test_a_configuration_file(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    path.write_text(json.dumps({"version": 1, "loggers": {"galley": {"level": "CRITICAL"}}}))
    configure_logging({"VLLM_LOGGING_CONFIG_PATH": str(path)})
    assert logging.getLogger("galley").level == logging.CRITICAL
    for bad in ("{", '{"version": 2}', "[]"):
        path.write_text(bad)
        with pytest.raises(ConfigError, match="VLLM_LOGGING_CONFIG_PATH"):
            configure_logging({"VLLM_LOGGING_CONFIG_PATH": str(path)})
    with pytest.raises(ConfigError, match="VLLM_LOGGING_CONFIG_PATH"):
        configure_logging({"VLLM_LOGGING_CONFIG_PATH": str(tmp_path / "none")})


@pytest.mark.parametrize(
    ("name", "value"), [("VLLM_LOGGING_LEVEL", "LOUD"), ("VLLM_LOGGING_STREAM", "file.txt")]
)
def test_bad_values_name_the_variable(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=name):
        configure_logging({name: value})


def test_some_paths_have_no_access_log() -> None:
    """Checklist 223."""
    logger = logging.getLogger("uvicorn.access")
    stream = io.StringIO()
    logger.handlers[:] = [logging.StreamHandler(stream)]
    logger.setLevel("INFO")
    silence_access_log(["/health", " /metrics"])
    for path in ("/health", "/metrics?a=b", "/v1/models", "/healthy"):
        logger.info('%s - "%s %s HTTP/%s" %d', "1.2.3.4:5", "GET", path, "1.1", 200)
    logger.info("another line")
    assert [line.split(" ")[3:4] for line in stream.getvalue().splitlines()] == [
        ["/v1/models"],
        ["/healthy"],
        [],
    ]


def test_json_lines() -> None:
    line = json.loads(JsonFormatter().format(record(text='a "word"\nand more')))
    assert line.pop("pid") > 0
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "INFO",
        "logger": "galley.server.main",
        "message": 'a "word"\nand more',
    }
    try:
        raise ValueError("broken")
    except ValueError:
        with_error = logging.LogRecord("galley", 40, "f.py", 1, "x", None, sys.exc_info())
    assert "ValueError: broken" in json.loads(JsonFormatter().format(with_error))["exception"]


def test_the_form_is_chosen_by_variable() -> None:
    configure_logging({"GALLEY_LOGGING_FORMAT": "json"})
    assert isinstance(logging.getLogger("galley").handlers[0].formatter, JsonFormatter)
    with pytest.raises(ConfigError, match="GALLEY_LOGGING_FORMAT"):
        configure_logging({"GALLEY_LOGGING_FORMAT": "xml"})


@pytest.mark.parametrize(
    ("env", "colored"),
    [
        ({}, False),
        ({"FORCE_COLOR": "1"}, True),
        ({"VLLM_LOGGING_COLOR": "1", "NO_COLOR": "1"}, True),
        ({"VLLM_LOGGING_COLOR": "0", "FORCE_COLOR": "1"}, False),
    ],
)
def test_color_where_the_log_is_no_terminal(env: dict[str, str], colored: bool) -> None:
    configure_logging(env)
    formatter = logging.getLogger("galley").handlers[0].formatter
    assert formatter is not None
    assert ("\033[" in formatter.format(record())) is colored
