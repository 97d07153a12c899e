"""Logging set-up of a process: one handler, one readable line per record.

    INFO 11-24 08:56:01 [server.main] Serving on http://127.0.0.1:8000

Levels and format come from vLLM's variables; `GALLEY_*` takes precedence over `VLLM_*`.
"""

from __future__ import annotations

import json
import logging
import logging.config
import os
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import TextIO

from galley.errors import ConfigError

_COLORS = {"DEBUG": "37", "INFO": "32", "WARNING": "33", "ERROR": "31", "CRITICAL": "35"}
_LEVELS = (*_COLORS, "TRACE", "NOTSET")
TRACE = 5


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time (ISO 8601, UTC), level, logger, message, pid, exception."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC)
        fields = {
            "time": moment.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


class LineFormatter(logging.Formatter):
    """LEVEL date time [package.module] text; further lines are indented under the first."""

    def __init__(self, prefix: str, color: bool) -> None:
        super().__init__("%(message)s", "%m-%d %H:%M:%S")
        self._prefix = prefix
        self._color = color

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        level = record.levelname
        if self._color:
            level = f"\033[{_COLORS.get(level, '0')}m{level}\033[0m"
        name = record.name.removeprefix("galley.").removesuffix(".error")
        head = f"{self._prefix}{level} {self.formatTime(record, self.datefmt)} [{name}] "
        return head + text.replace("\n", "\n    ")


def configure_logging(env: Mapping[str, str] = os.environ) -> None:
    """Set up logging for this process; safe to call again.

    Variables (each as VLLM_… or GALLEY_…): LOGGING_LEVEL, LOGGING_PREFIX, LOGGING_STREAM,
    LOGGING_COLOR (auto, 1, 0), LOGGING_CONFIG_PATH (a JSON file for `logging.config.dictConfig`),
    CONFIGURE_LOGGING (0 leaves logging alone); and GALLEY_LOGGING_FORMAT (text, json).

    Raises:
        ConfigError: a variable's value cannot be used; names the variable.
    """
    if _variable(env, "CONFIGURE_LOGGING", "1") == "0":
        return
    path = _variable(env, "LOGGING_CONFIG_PATH", "")
    if path:
        _configure_from(path)
        return
    level = level_of(env)
    stream = _stream(_variable(env, "LOGGING_STREAM", "ext://sys.stdout"))
    handler = logging.StreamHandler(stream)
    handler.setFormatter(make_formatter(env, stream))
    logging.addLevelName(TRACE, "TRACE")
    for name in ("galley", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
    logging.getLogger("galley").setLevel(level)


def level_of(env: Mapping[str, str]) -> int:
    """The least level that is logged. Raises ConfigError for one that does not exist."""
    level = _variable(env, "LOGGING_LEVEL", "INFO").upper()
    if level not in _LEVELS:
        raise ConfigError(
            f"VLLM_LOGGING_LEVEL must be one of {', '.join(_LEVELS)}; got {level!r}.",
            field="VLLM_LOGGING_LEVEL",
        )
    return TRACE if level == "TRACE" else logging.getLevelNamesMapping()[level]


def make_formatter(env: Mapping[str, str], stream: TextIO) -> logging.Formatter:
    """The formatter of lines to `stream`. Raises ConfigError for a variable that is not valid."""
    format = env.get("GALLEY_LOGGING_FORMAT") or "text"
    if format == "json":
        return JsonFormatter()
    if format != "text":
        raise ConfigError(
            f"GALLEY_LOGGING_FORMAT must be text or json; got {format!r}.",
            field="GALLEY_LOGGING_FORMAT",
        )
    color = _variable(env, "LOGGING_COLOR", "auto")
    wanted = stream.isatty() and "NO_COLOR" not in env
    return LineFormatter(
        _variable(env, "LOGGING_PREFIX", ""),
        color == "1" or (color == "auto" and (wanted or "FORCE_COLOR" in env)),
    )


def _variable(env: Mapping[str, str], name: str, default: str) -> str:
    return env.get(f"GALLEY_{name}") or env.get(f"VLLM_{name}") or default


def _stream(name: str) -> TextIO:
    streams = {"ext://sys.stdout": sys.stdout, "ext://sys.stderr": sys.stderr}
    if name not in streams:
        raise ConfigError(
            f"VLLM_LOGGING_STREAM must be one of {', '.join(streams)}; got {name!r}.",
            field="VLLM_LOGGING_STREAM",
        )
    return streams[name]


def _configure_from(path: str) -> None:
    try:
        with open(path, encoding="utf-8") as f:
            # Loggers already exist, created on import; the file applies to them as well.
            logging.config.dictConfig({"disable_existing_loggers": False, **json.load(f)})
    except (OSError, ValueError, TypeError, AttributeError) as e:
        raise ConfigError(
            f"VLLM_LOGGING_CONFIG_PATH: {path} is not a logging configuration: {e}",
            field="VLLM_LOGGING_CONFIG_PATH",
        ) from e


class _PathFilter(logging.Filter):
    """Drops records about some paths (uvicorn's second argument after the client)."""

    def __init__(self, paths: Iterable[str]) -> None:
        super().__init__()
        self._paths = frozenset(paths)

    def filter(self, record: logging.LogRecord) -> bool:
        args = record.args
        if not isinstance(args, tuple) or len(args) < 3:
            return True
        return str(args[2]).partition("?")[0] not in self._paths


def silence_access_log(paths: Iterable[str]) -> None:
    """Write no access log for requests to `paths`; all others are logged as before."""
    logging.getLogger("uvicorn.access").addFilter(_PathFilter(p.strip() for p in paths))
