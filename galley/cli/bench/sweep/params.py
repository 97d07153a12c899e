"""Settings that are swept over: from JSON to combinations, command lines and names."""

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
#: Key of a combination's own name; no option.
NAME = "_benchmark_name"


def read_params(text: str | None, flag: str) -> list[Settings]:
    """JSON, or a file of it → the combinations.

    A list of objects; an object of objects, whose keys are the combinations' names; or one object.
    Lists among the values are multiplied out. Nothing gives one empty combination.

    Raises:
        ConfigError: it cannot be read, is something else, or gives a name twice.
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
    found = [combination for item in records for combination in multiply(item)]
    names = [name_of(settings) for settings in found]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"--{flag}: there are several combinations {twice!r}.", field=flag)
    return found


def multiply(settings: Settings) -> Iterator[Settings]:
    """{"a": [1, 2], "b": 3} → {"a": 1, "b": 3}, {"a": 2, "b": 3}; names get what was chosen."""
    lists = [value if isinstance(value, list) else [value] for value in settings.values()]
    chosen = [key for key, value in settings.items() if isinstance(value, list)]
    for values in itertools.product(*lists):
        one = dict(zip(settings, values, strict=True))
        if NAME in one and chosen:
            one[NAME] = "-".join([str(one[NAME]), *(f"{key}={one[key]}" for key in chosen)])
        yield one


def name_of(settings: Settings) -> str:
    """As part of a file's name."""
    if NAME in settings:
        return str(settings[NAME])
    return "-".join(f"{key}={value}" for key, value in settings.items())


def safe(name: str) -> str:
    """A file's name without what would lead elsewhere (vLLM's rule)."""
    return name.replace("/", "_").replace("..", "__").strip("'").strip('"')


def words(settings: Settings) -> list[list[str]]:
    """Each setting as the words of its option."""
    found = []
    for name, value in settings.items():
        option = "--" + name.replace("_", "-")
        if name == NAME:
            continue
        if not isinstance(value, bool):
            text = json.dumps(value) if isinstance(value, dict) else str(value)
            found.append([option, text])
        elif "." in name:
            found.append([f"{option}={str(value).lower()}"])
        else:
            found.append([option if value else option.replace("--", "--no-", 1)])
    return found


def apply(settings: Settings, command: Sequence[str]) -> list[str]:
    """A command with these settings, which replace those that it has."""
    result = list(command)
    for new in words(settings):
        spellings = (new[0], "--" + new[0][2:].replace("-", "_"))
        at = next((i for i, word in enumerate(result) if word in spellings), None)
        if at is None:
            result += new
        else:
            result[at : at + len(new)] = new
    return result


def option_of(command: Sequence[str], *options: str) -> str | None:
    """The value of the first of these options that a command has."""
    for i, word in enumerate(command):
        option, separator, value = word.partition("=")
        if option in options:
            return value if separator else next(iter(command[i + 1 : i + 2]), None)
    return None


def command_of(text: str) -> list[str]:
    """A command's words; `galley` is this very installation, whether or not it is on the path."""
    first, *rest = shlex.split(text)
    if os.path.basename(first) == first == "galley":
        return [sys.executable, "-m", "galley", *rest]
    return [first, *rest]
