"""The configuration of a running server: each flag's value, and where it came from."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import msgspec

from galley.config.flags import flags_of
from galley.config.resolve import SECTIONS, environment
from galley.config.server import ServerConfig
from galley.server.context import Context

#: Fields whose values are secrets.
_SECRET = ("api_key", "hf_token")
#: Characters of a value that are shown.
_LONGEST = 200


class Setting(msgspec.Struct):
    """A flag.

    Attributes:
        source: "command line", "--config", "environment", "chosen" (by the use, the machine or the
            model), or "default".
    """

    group: str
    flag: str
    value: str
    source: str
    help: str


def settings(ctx: Context) -> list[Setting]:
    """Every flag of `serve`, in the order of its help."""
    from_environment = set(environment())
    groups: list[tuple[type, Any]] = [(ServerConfig, ctx.server)]
    groups += [(cls, getattr(ctx.config, name)) for name, cls in SECTIONS.items()]
    found = []
    for cls, section in groups:
        values = asdict(section)
        for flag in flags_of(cls):
            value = values[flag.name]
            source = ctx.sources.get(flag.name)
            if source is None and value != flag.default:
                outside = flag.name in from_environment or cls is ServerConfig
                source = "environment" if outside else "chosen"
            found.append(
                Setting(
                    (cls.__doc__ or "").strip().splitlines()[0].rstrip("."),
                    flag.option,
                    _shown(flag.name, value),
                    source or "default",
                    flag.help,
                )
            )
    return found


def _shown(name: str, value: Any) -> str:
    if name in _SECRET and value:
        return "***"
    if value is None or value in ("", (), {}):
        return ""
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
