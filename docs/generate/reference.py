"""The pages of docs/reference: commands, HTTP API, Python API, metrics.

Each is made from what the program itself reads: the parsers of the commands, the server's OpenAPI
document, docstrings, the exposition of /metrics and the alerts of deploy/prometheus.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import yaml
from probe import Program

import galley
from galley.cli.bench import main as bench
from galley.cli.main import COMMANDS
from galley.cli.parser import SHARED, CommandParser
from galley.config.flags import Flag, flags_of

ROOT = Path(__file__).parents[2]
GENERATED = "*Generated from the program by `make docs`.*\n"


def pages(program: Program) -> dict[str, str]:
    """Name of each page, and its text."""
    return {
        "cli.md": cli(),
        "http.md": http(program.openapi),
        "python.md": python(),
        "metrics.md": metrics(program.metric_help, program.metrics),
    }


def cell(text: str) -> str:
    """Text for one cell of a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


# ---------------------------------------------------------------- commands


def parsers() -> Iterator[tuple[str, CommandParser]]:
    """Each command that has a parser, `bench serve` among them, in the order of the help."""
    tables = (("", COMMANDS), ("bench ", bench.COMMANDS))
    for prefix, table in tables:
        for name, (module, _) in table.items():
            make: Callable[[], CommandParser] | None
            make = getattr(importlib.import_module(module), "parser", None)
            if make is not None:
                yield prefix + name, make()


def cli() -> str:
    parts = ["# Commands\n\n", GENERATED]
    parts.append(
        "\n`galley COMMAND --help` prints the short form, `--help=FLAG` explains a flag. Dashes\n"
        "and underscores are alike, a boolean flag has a `--no-` form. A number may be `4k`\n"
        "(4,000) or `4K` (4,096), and `--config FILE` reads flags from YAML\n"
        "([configuration](configuration.md)).\n"
    )
    shared: dict[type, None] = {}
    for name, parser in parsers():
        own = [flag for flag in parser.flags.values() if flag.owner not in SHARED]
        groups = [group for group in parser.groups if group in SHARED]
        shared |= dict.fromkeys(groups)
        usage = " ".join([f"galley {name}", *(f"[{word}]" for word, _ in parser.positionals)])
        parts.append(
            f"\n## `galley {name}`\n\n{parser.summary}\n\n```text\n{usage} [options]\n```\n"
        )
        parts += ["\n", *(f"- `{word}`: {text}\n" for word, text in parser.positionals)]
        parts += ["\n" + flag_table(own)] if own else []
        if groups:
            links = (f"[{title(group)}](#{anchor(title(group))})" for group in groups)
            parts.append(f"\nAlso the flags of {', '.join(links)}.\n")
    for group in shared:
        about = (group.__doc__ or "").strip().partition("\n")[2].strip()
        parts.append(f"\n## {title(group)}\n\n{about}\n\n{flag_table(flags_of(group))}")
    return "".join(parts)


def title(group: type) -> str:
    return (group.__doc__ or group.__name__).strip().splitlines()[0].rstrip(".")


def anchor(text: str) -> str:
    return re.sub(r"[^\w-]+", "-", text.lower()).strip("-")


def flag_table(flags: Iterable[Flag]) -> str:
    lines = ["| flag | default | |", "|---|---|---|"]
    for flag in flags:
        spelled = " ".join(f"`{word}`" for word in flag.spellings)
        text = cell(flag.help)
        if flag.choices:
            text += " One of " + ", ".join(f"`{choice}`" for choice in flag.choices) + "."
        lines.append(f"| {spelled} | {shown(flag)} | {text} |")
    return "\n".join(lines) + "\n"


def shown(flag: Flag) -> str:
    if flag.default in (None, (), {}, ""):
        return ""
    if isinstance(flag.default, bool):
        return "on" if flag.default else "off"
    if dataclasses.is_dataclass(flag.default) or isinstance(flag.default, msgspec.Struct):
        return ""
    return f"`{cell(str(flag.default))}`"


# ---------------------------------------------------------------- HTTP


def http(paths: dict[str, dict[str, Any]]) -> str:
    lines = ["# HTTP API\n", GENERATED]
    lines.append(
        "The routes of a server of a text model with its optional ones switched on, and those of\n"
        "a pooling server. [Request fields](../request_fields.md) has the fields of each request,\n"
        "[security](../security.md#routes) says which routes need a key. A running server shows\n"
        "the same at `/docs`, and as OpenAPI at `/openapi.json`.\n"
    )
    lines += ["| route | |", "|---|---|"]
    for path, item in sorted(paths.items()):
        for method, operation in item.items():
            text = operation.get("description") or operation.get("summary") or ""
            lines.append(f"| `{method.upper()} {path}` | {cell(text)} |")
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------- Python


def python() -> str:
    parts = ["# Python API\n\n", GENERATED]
    parts.append("\nAll of these are imported from `galley`.\n")
    for name in sorted(galley.__all__, key=lambda name: (name != "LLM", name)):
        thing = getattr(galley, name)
        if inspect.isclass(thing):
            parts.append(python_class(name, thing))
    return "".join(parts)


def python_class(name: str, thing: type) -> str:
    parts = [f"\n## `{name}`\n\n{docstring(thing)}\n"]
    if hints := fields(thing):
        parts += ["\n| field | default |\n|---|---|\n"]
        parts += [f"| `{field}` | {default} |\n" for field, default in hints]
    for method, function in vars(thing).items():
        if method.startswith("_") or not inspect.isfunction(function):
            continue
        parts.append(f"\n### `{name}.{method}`\n\n```text\n{signature(function)}\n```\n")
        if function.__doc__:
            parts.append(f"\n{docstring(function)}\n")
    return "".join(parts)


def signature(function: Callable[..., Any]) -> str:
    """Its name and parameters, one a line where there are several; annotations as written."""
    whole = inspect.signature(function)
    unquoted = [
        re.sub(r": '([^']*)'", r": \1", str(parameter))
        for name, parameter in whole.parameters.items()
        if name != "self"
    ]
    separate = len(unquoted) > 1
    inner = "".join(f"\n    {text}," for text in unquoted) + "\n" if separate else "".join(unquoted)
    result = "" if whole.return_annotation is whole.empty else f" -> {whole.return_annotation}"
    return f"{function.__name__}({inner}){result}"


def docstring(thing: Any) -> str:
    """Its docstring; the sections "Args:", "Attributes:" … become lists."""
    lines, in_section = [], False
    for line in (inspect.getdoc(thing) or "").splitlines():
        if re.fullmatch(r"[A-Z][a-z]+:", line):
            lines += [f"**{line}**", ""]
            in_section = True
        elif in_section and (entry := re.match(r" {4}([\w*, ]+): (.*)", line)):
            lines.append(f"- `{entry[1]}`: {entry[2]}")
        else:
            in_section = in_section and line.startswith(" ")
            lines.append("  " + line.strip() if in_section and line.strip() else line.strip())
    return "\n".join(lines).replace("<", "&lt;")


def fields(thing: type) -> list[tuple[str, str]]:
    """Names and defaults of a struct or dataclass."""
    if issubclass(thing, msgspec.Struct):
        found = msgspec.structs.fields(thing)
        missing = msgspec.NODEFAULT
    elif dataclasses.is_dataclass(thing):
        found, missing = dataclasses.fields(thing), dataclasses.MISSING
    else:
        return []
    return [
        (field.name, "" if field.default is missing else f"`{cell(repr(field.default))}`")
        for field in found
        if not field.name.startswith("_")
    ]


# ---------------------------------------------------------------- metrics

#: How the name of a metric ends → its unit.
UNITS = {
    "seconds": "seconds",
    "bytes": "bytes",
    "tokens": "tokens",
    "perc": "0 to 1",
    "requests": "requests",
}


def metrics(help: dict[str, str], kinds: dict[str, tuple[str, tuple[str, ...]]]) -> str:
    alerts = alerts_by_metric()
    lines = ["# Metrics\n", GENERATED]
    lines.append(
        "What `GET /metrics` exposes with all optional families switched on. Counters end with\n"
        "`_total` in the text format. *Alert*: rules of `deploy/prometheus/alerts.yml` that read\n"
        "the metric.\n"
    )
    lines += ["| metric | type | unit | labels | meaning | alert |", "|---|---|---|---|---|---|"]
    for name, (kind, labels) in sorted(kinds.items()):
        unit = next((UNITS[word] for word in reversed(name.split("_")) if word in UNITS), "")
        named = ", ".join(f"`{label}`" for label in labels if label != "le")
        rules = ", ".join(f"`{rule}`" for rule in sorted(alerts.get(name, ())))
        lines.append(
            f"| `{name}` | {kind} | {unit} | {named} | {cell(help.get(name, ''))} | {rules} |"
        )
    return "\n".join(lines) + "\n"


def alerts_by_metric() -> dict[str, set[str]]:
    """Metric → the alerts whose expression reads it."""
    found: dict[str, set[str]] = {}
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            for name in re.findall(r"\b(?:vllm|galley):\w+", rule.get("expr", "")):
                name = re.sub(r"_(?:total|bucket|sum|count)$", "", name)
                found.setdefault(name, set()).add(rule.get("alert", rule.get("record")))
    return found
