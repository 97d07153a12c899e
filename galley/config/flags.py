"""Flags from dataclass fields: names, types, help texts and parsing of values.

Each frozen field is a flag (dashes or underscores). This module reads annotations and docstrings;
it does not depend on the command line or on the meaning of a flag.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import json
import re
import textwrap
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from galley.errors import ConfigError

#: vLLM's short and alternative spellings.
ALIASES: dict[str, tuple[str, ...]] = {
    "tensor_parallel_size": ("-tp",),
    "pipeline_parallel_size": ("-pp",),
    "data_parallel_size": ("-dp",),
    "gpu_memory_utilization": ("--device-memory-utilization",),
    "api_server_count": ("-asc",),
    "speculative_config": ("-sc",),
    "quantization": ("-q",),
    "quick": ("-q",),
    "input_file": ("-i",),
    "output_file": ("-o",),
    "output_dir": ("-o",),
    "experiment_name": ("-e",),
}
_UNITS = {
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "K": 2**10,
    "M": 2**20,
    "G": 2**30,
    "T": 2**40,
}
_HUMAN_INT = re.compile(r"(-?\d+(?:\.\d+)?)([kKmMgGtT]?)(?:i?[bB])?")


class Flag(msgspec.Struct, frozen=True):
    """One flag: `name` of the field, `kind` of its value, `owner` the dataclass; `refused`: values
    of vLLM that are no choices here → what to use instead."""

    name: str
    owner: type
    kind: Literal["bool", "int", "float", "str", "switch", "list", "json"]
    choices: tuple[Any, ...]
    default: Any
    optional: bool
    refused: Mapping[str, str] = {}

    @property
    def option(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def spellings(self) -> tuple[str, ...]:
        return (self.option, *ALIASES.get(self.name, ()))

    @property
    def help(self) -> str:
        return field_docs(self.owner).get(self.name, "")


def human_int(text: str) -> int:
    """1k = 1000, 1K = 1024, 25.6k, 4G; `auto` is -1. Raises ValueError."""
    if text.strip().lower() == "auto":
        return -1
    match = _HUMAN_INT.fullmatch(text.strip())
    if not match:
        raise ValueError(f"not a number: {text!r}")
    value = float(match[1]) * _UNITS.get(match[2], 1)
    if value != int(value):
        raise ValueError(f"not a whole number: {text!r}")
    return int(value)


@functools.cache
def flags_of(owner: type) -> tuple[Flag, ...]:
    """The flags of a configuration dataclass, in field order."""
    hints = typing.get_type_hints(owner)
    return tuple(_flag(owner, f, hints[f.name]) for f in dataclasses.fields(owner))


def _flag(owner: type, field: dataclasses.Field[Any], hint: Any) -> Flag:
    optional = False
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        parts = [a for a in typing.get_args(hint) if a is not type(None)]
        optional = len(parts) < len(typing.get_args(hint))
        hint = parts[0] if len(parts) == 1 else tuple(parts)
    origin = typing.get_origin(hint)
    choices: tuple[Any, ...] = field.metadata.get("choices", ())
    if origin is Literal:
        choices = typing.get_args(hint)
        hint = type(choices[0])
    kinds = {bool: "bool", int: "int", float: "float", str: "str", (bool, str): "switch"}
    kind = kinds.get(hint)
    if kind is None:
        kind = "list" if hint is tuple or origin is tuple else "json"
    default = field.default
    if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    refused = field.metadata.get("refused", {})
    return Flag(field.name, owner, typing.cast(Any, kind), choices, default, optional, refused)


@functools.cache
def field_docs(owner: type) -> dict[str, str]:
    """The docstring under each field, inherited ones too: the flag's help."""
    docs: dict[str, str] = {}
    for base in reversed(owner.__bases__):
        if dataclasses.is_dataclass(base):
            docs |= field_docs(base)
    body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
    assert isinstance(body, ast.ClassDef)
    for item, after in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(item, ast.AnnAssign)
            and isinstance(item.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
            and isinstance(after.value.value, str)
        ):
            docs[item.target.id] = " ".join(after.value.value.split())
    return docs


def coerce(flag: Flag, value: Any) -> Any:
    """Convert `value` to the field's type; strings are parsed as on a command line.

    Raises:
        ConfigError: wrong type, unknown choice; names the flag.
    """
    if value is None:
        if flag.optional or flag.default is None:
            return None
        if not flag.default and flag.kind in ("list", "json"):
            return flag.default
        raise ConfigError(f"{flag.option} must not be empty.", field=flag.name)
    try:
        value = _READERS[flag.kind](value)
    except (ValueError, TypeError) as e:
        raise ConfigError(
            f"{flag.option} expects {_EXPECTED[flag.kind]}, got {value!r}.", field=flag.name
        ) from e
    if flag.choices and value not in flag.choices:
        if isinstance(value, str) and value in flag.refused:
            why = flag.refused[value]
            raise ConfigError(f"{flag.option} {value} is not supported: {why}", field=flag.name)
        allowed = ", ".join(str(c) for c in flag.choices)
        raise ConfigError(
            f"{flag.option} must be one of {allowed}; got {value!r}.", field=flag.name
        )
    return value


def _read_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise ValueError


def _read_int(value: Any) -> int:
    if isinstance(value, bool) or (isinstance(value, float) and value != int(value)):
        raise ValueError
    return human_int(value) if isinstance(value, str) else int(value)


def _read_float(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError
    return float(value)


def _read_str(value: Any) -> str:
    if isinstance(value, (bool, list, dict, tuple)):
        raise ValueError
    return str(value)


def _read_switch(value: Any) -> bool | str:
    """Accept text, or true or false."""
    try:
        return _read_bool(value)
    except ValueError:
        return _read_str(value)


def _read_list(value: Any) -> tuple[Any, ...]:
    """Accept words, one word, or a JSON list (as vLLM does for `--allowed-origins`)."""
    if isinstance(value, str):
        value = [value]
    out: list[Any] = []
    for item in value:
        if isinstance(item, type):  # a class in place of its name
            out.append(item)
            continue
        text = _read_str(item)
        if text.startswith("["):
            out.extend(_read_str(part) for part in json.loads(text))
        else:
            out.append(text)
    return tuple(out)


def _read_json(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        value = json.loads(value)
    if not isinstance(value, dict):
        raise ValueError
    return value


_READERS: dict[str, Any] = {
    "bool": _read_bool,
    "int": _read_int,
    "float": _read_float,
    "str": _read_str,
    "switch": _read_switch,
    "list": _read_list,
    "json": _read_json,
}
_EXPECTED = {
    "bool": "true or false",
    "int": "a whole number (4096, 4k, 4K)",
    "float": "a number",
    "str": "text",
    "switch": "text, or true or false",
    "list": "a list of words",
    "json": "a JSON object",
}
