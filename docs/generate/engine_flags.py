"""galley/config/engine_flags.py: the engine's flags as a TypedDict, for editors."""

from __future__ import annotations

from galley.config.flags import Flag, flags_of
from galley.config.resolve import SECTIONS

_HEAD = '''"""The engine's flags as types, for `LLM(**flags)`; made by `make docs`."""

from __future__ import annotations

from typing import Any, Literal, TypedDict


class EngineFlags(TypedDict, total=False):
    """Flags as `LLM` takes them; `galley serve --help=FLAG` explains each."""

'''
#: Kind of a flag → its type. Numbers may be text with a unit: "4k", "8G".
_TYPES = {
    "bool": "bool",
    "int": "int | str",
    "float": "float",
    "str": "str",
    "switch": "bool | str",
    "list": "list[str] | tuple[str, ...]",
    "json": "dict[str, Any]",
}


def module() -> str:
    """The text of the module."""
    flags = [flag for section in SECTIONS.values() for flag in flags_of(section)]
    return _HEAD + "".join(f"    {f.name}: {type_of(f)}\n" for f in flags if f.name != "model")


def type_of(flag: Flag) -> str:
    """The flag's type; `str` where the choices would not fit into a line."""
    none = " | None" if flag.optional or flag.default is None else ""
    choices = ", ".join(f'"{choice}"' for choice in flag.choices)
    if choices and flag.kind == "str":
        text = f"Literal[{choices}]{none}"
        return text if len(f"    {flag.name}: {text}") <= 100 else f"str{none}"
    return _TYPES[flag.kind] + none
