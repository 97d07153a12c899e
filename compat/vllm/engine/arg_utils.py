"""`EngineArgs`: engine flags by their Python names, from keywords or a command line."""

from __future__ import annotations

import argparse
import json
from typing import Any

from galley.config.flags import Flag, flags_of, human_int
from galley.config.resolve import SECTIONS, from_kwargs
from vllm._names import missing
from vllm.utils.argparse_utils import Arguments

__all__ = ["AsyncEngineArgs", "EngineArgs"]


def engine_flags() -> dict[str, Flag]:
    """Every engine flag of Galley by its Python name."""
    return {f.name: f for section in SECTIONS.values() for f in flags_of(section)}


class EngineArgs:
    """Engine flags: those given, and the defaults of the others as attributes.

    Raises:
        ConfigError: a flag that does not exist or is not supported; says why.
    """

    def __init__(self, **flags: Any) -> None:
        from_kwargs(flags, "offline")
        self.given = flags

    def __getattr__(self, name: str) -> Any:
        given = self.__dict__.get("given", {})
        if name in given:
            return given[name]
        known = engine_flags()
        if name in known:
            return known[name].default
        raise AttributeError(f"EngineArgs has no flag {name!r}")

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.given.items())
        return f"{type(self).__name__}({shown})"

    @classmethod
    def from_cli_args(cls, args: argparse.Namespace) -> EngineArgs:
        known = engine_flags()
        return cls(**{name: value for name, value in vars(args).items() if name in known})

    @staticmethod
    def add_cli_args(parser: Any) -> Any:
        """Add every engine flag; `vars()` of the result has those that were given."""
        known = engine_flags()
        for flag in known.values():
            parser.add_argument(
                *flag.spellings, dest=flag.name, default=argparse.SUPPRESS, **_kind(flag)
            )
        Arguments.defaults = {name: flag.default for name, flag in known.items()}
        return parser

    def create_engine_config(self, *_: Any, **__: Any) -> Any:
        missing("EngineArgs.create_engine_config", "LLM(...).config has Galley's configuration")


class AsyncEngineArgs(EngineArgs):
    """As EngineArgs; a setting of the log acts only in a server."""

    def __init__(self, **flags: Any) -> None:
        for name in ("enable_log_requests", "disable_log_requests", "disable_log_stats"):
            flags.pop(name, None)
        super().__init__(**flags)


def _kind(flag: Flag) -> dict[str, Any]:
    """The arguments with which argparse reads the flag."""
    text = (flag.help or "").replace("%", "%%")
    if flag.kind == "bool":
        return {"action": argparse.BooleanOptionalAction, "help": text}
    if flag.kind == "list":
        return {"nargs": "+", "help": text}
    if flag.kind == "switch":
        return {"nargs": "?", "const": True, "help": text}
    read: dict[str, Any] = {"int": human_int, "float": float, "json": json.loads}
    choices = {"choices": list(flag.choices)} if flag.choices else {}
    return {"type": read.get(flag.kind, str), "help": text, **choices}
