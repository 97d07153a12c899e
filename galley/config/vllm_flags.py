"""vLLM 0.32's serve flags that Galley has no field for: accepted as hints, or refused.

A flag that only tunes how vLLM computes the same answer is a *hint*: accepted with a one-line
notice. A flag that asks for something Galley does not do is *refused* with a sentence. The names
are in vllm_flags.toml, which is read when the first such flag is met.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Literal

Verdict = Literal["hint", "refused", "unknown"]

_NOTHING = ("", "none", "null", "false", "auto", "0", "0.0", "{}", "[]")


@cache
def _data() -> dict[str, Any]:
    import tomllib  # only a command line with such a flag needs it

    return tomllib.loads(Path(__file__).with_suffix(".toml").read_text())


@cache
def dispositions() -> dict[str, tuple[Verdict, str]]:
    """The verdict on each flag and its sentence, by name (underscores)."""
    table: dict[str, tuple[Verdict, str]] = {}
    for name in _data()["hints"].split():
        table[name] = ("hint", "it only tunes how vLLM reaches the same answer; it has no effect.")
    for row in _data()["refused"]:
        for name in row["flags"].split():
            table[name] = ("refused", row["reason"])
    return table


def satisfied_values(name: str) -> tuple[str, ...]:
    """Values of the refused flag `name` that ask for what Galley does anyway."""
    return tuple(_data()["satisfied"].get(name, ()))


def asks(name: str, value: object) -> bool:
    """Whether `value` of the refused flag `name` asks for something that Galley does not do."""
    text = str(value)
    return bool(value) and text.lower() not in _NOTHING and text not in satisfied_values(name)


@cache
def groups_of_vllm() -> dict[str, list[str]]:
    """Flags (underscores) of the groups of vLLM (lower case) that Galley does not have."""
    return {group: flags.split() for group, flags in _data()["groups"].items()}


def disposition(name: str) -> tuple[Verdict, str]:
    """The verdict on the vLLM flag `name` (underscores), and its sentence."""
    return dispositions().get(name, ("unknown", ""))
