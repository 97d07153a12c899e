"""Typed reads of configuration values: a wrong one is a ModelError naming file and key."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from galley.errors import ModelError

#: Largest side file that is read whole; a tokenizer.json with 260,000 tokens has about 35 MB.
MAX_JSON_BYTES = 256 << 20
_MAX_INT = 2**53
#: Sizes of a model beyond which a file is damaged or malicious: memory is allocated by them.
MAX_LAYERS = 4096
MAX_HEADS = 65_536
MAX_HEAD_DIM = 65_536
#: Positions are 32-bit numbers.
MAX_POSITIONS = 2**31 - 1


class Fields:
    """Typed reads over one mapping. `where` names its file in messages."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def integer(
        self, key: str, default: int | None = None, *, least: int = 0, most: int = _MAX_INT
    ) -> int:
        """An integer from `least` to `most`; without a default, a missing key is an error."""
        value = self._value(key, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(key, "an integer")
        if not least <= value <= most:
            raise self.wrong(key, f"at least {least} and at most {most}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(key, "a number")
        try:
            number = float(value)
        except OverflowError:
            raise self.wrong(key, "finite") from None
        if not math.isfinite(number):
            raise self.wrong(key, "finite")
        return number

    def text(self, key: str, default: str | None = None) -> str:
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, "a string")
        return value

    def flag(self, key: str, default: bool | None = None) -> bool:
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def table(self, key: str) -> dict[str, Any]:
        """A nested object, {} where missing or null."""
        value = self.values.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return value

    def ids(self, key: str) -> tuple[int, ...]:
        """Token ids: null, one number or a list of numbers."""
        value = self.values.get(key)
        items = value if isinstance(value, list) else [] if value is None else [value]
        for item in items:
            if isinstance(item, bool) or not isinstance(item, int) or not 0 <= item < 2**31:
                raise self.wrong(key, "a token id or a list of token ids")
        return tuple(items)

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def wrong(self, key: str, want: str) -> ModelError:
        value = self.values.get(key)
        if value is None:
            return ModelError(f"{self.where}: {key} is missing")
        try:
            shown = repr(value)
        except (ValueError, RecursionError):  # a number of thousands of digits, or nested so deep
            shown = f"a {type(value).__name__}"
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        return ModelError(f"{self.where}: {key} is {shown}, but must be {want}")

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        return default if value is None else value


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ModelError naming the file."""
    value = _read_json(path)
    if not isinstance(value, dict):
        raise ModelError(f"{path}: holds {type(value).__name__}, not a JSON object")
    return value


def read_json_objects(path: Path) -> list[dict[str, Any]]:
    """The list of objects in a JSON file. Raises ModelError naming the file."""
    value = _read_json(path)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ModelError(f"{path}: not a JSON list of objects")
    return value


def _read_json(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ModelError(f"{path}: larger than {MAX_JSON_BYTES >> 20} MiB")
        return json.loads(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not valid JSON: {error}") from None
