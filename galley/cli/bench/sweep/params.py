"""Swept settings: JSON to combinations, command lines and names."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from galley.errors import ConfigError

Settings = dict[str, Any]
#: Key of a combination's name; not an option.
NAME = "_benchmark_name"


def read_params(text: str | None, flag: str) -> list[Settings]:
    """Parse JSON, or a JSON file, to combinations.

    Accepts a list of objects, an object of objects (keys name the combinations), or one object.
    Lists among the values are multiplied out. Empty input gives one empty combination.

    Raises:
        ConfigError: the input cannot be read, has another shape, or repeats a name.
    """
    if not text:
        return [{}]
    try:
        if not text.lstrip().startswith(("{", "[")):
            text = Path(text).read_text(encoding="utf-8")
        data = json.loads(text)
    except (OSError, ValueError) as e:
        raise ConfigError(f"--{flag}: {e}.", field=flag) from e
    if isinstance(data, dict) and data and all(isinstance(v, dict) for v in data.values()):
        data = [{NAME: name, **settings} for name, settings in data.items()]
    records = data if isinstance(data, list) else [data]
    if not records or not all(isinstance(item, dict) for item in records):
        raise ConfigError(f"--{flag} takes a JSON object or a list of them.", field=flag)
    combinations = [combination for item in records for combination in multiply(item)]
    names = [name_of(settings) for settings in combinations]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"--{flag}: there are several combinations {twice!r}.", field=flag)
    return combinations


def multiply(settings: Settings) -> Iterator[Settings]:
    """{"a": [1, 2], "b": 3} → {"a": 1, "b": 3}, {"a": 2, "b": 3}; names get the chosen values."""
    lists = [value if isinstance(value, list) else [value] for value in settings.values()]
    chosen = [key for key, value in settings.items() if isinstance(value, list)]
    for values in itertools.product(*lists):
        one = dict(zip(settings, values, strict=True))
        if NAME in one and chosen:
            one[NAME] = "-".join([str(one[NAME]), *(f"{key}={one[key]}" for key in chosen)])
        yield one


def name_of(settings: Settings) -> str:
    """Name of a combination, as part of a file name."""
    if NAME in settings:
        return str(settings[NAME])
    return "-".join(f"{key}={value}" for key, value in settings.items())


def safe(name: str) -> str:
    """A file name without path separators or `..` (vLLM's rule)."""
    return name.replace("/", "_").replace("..", "__").strip("'").strip('"')


def words(settings: Settings) -> list[list[str]]:
    """Command-line words of each setting."""
    options = []
    for name, value in settings.items():
        option = "--" + name.replace("_", "-")
        if name == NAME:
            continue
        if not isinstance(value, bool):
            text = json.dumps(value) if isinstance(value, dict) else str(value)
            options.append([option, text])
        elif "." in name:
            options.append([f"{option}={str(value).lower()}"])
        else:
            options.append([option if value else option.replace("--", "--no-", 1)])
    return options


def apply(settings: Settings, command: Sequence[str]) -> list[str]:
    """A command with these settings added or replaced."""
    result = list(command)
    for new in words(settings):
        spellings = (new[0], "--" + new[0][2:].replace("-", "_"))
        index = next((i for i, word in enumerate(result) if word in spellings), None)
        if index is None:
            result += new
        else:
            result[index : index + len(new)] = new
    return result


def option_of(command: Sequence[str], *options: str) -> str | None:
    """Value of the first of these options in a command; None if it has none."""
    for i, word in enumerate(command):
        option, separator, value = word.partition("=")
        if option in options:
            return value if separator else next(iter(command[i + 1 : i + 2]), None)
    return None


def command_of(text: str) -> list[str]:
    """Split a command; `galley` means this installation, even if it is not on the path."""
    first, *rest = shlex.split(text)
    if os.path.basename(first) == first == "galley":
        return [sys.executable, "-m", "galley", *rest]
    return [first, *rest]
