"""`FlexibleArgumentParser`: argparse that takes dashes and underscores alike."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

__all__ = ["FlexibleArgumentParser"]


class Arguments(argparse.Namespace):
    """The given values; `defaults` has the values of engine flags that were not."""

    defaults: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        if name in type(self).defaults:
            return type(self).defaults[name]
        raise AttributeError(f"no argument {name!r}")


class FlexibleArgumentParser(argparse.ArgumentParser):
    """argparse; `--max_model_len` is `--max-model-len`."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        words = []
        for word in sys.argv[1:] if args is None else args:
            option, equals, value = word.partition("=")
            if option.startswith("--"):
                option = option.replace("_", "-")
            words.append(option + equals + value)
        known, rest = super().parse_known_args(words, namespace)
        return (Arguments(**vars(known)) if namespace is None else known), rest
