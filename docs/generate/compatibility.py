"""docs/compatibility.md: every name of vLLM's, and what becomes of it here.

The names are in vllm/*.json; what becomes of them is found by asking the program: its parser, its
tables, and a running server (probe.py). Reasons that the program does not know are in reasons.py.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import reasons
from probe import Program

from galley.cli.main import COMMANDS
from galley.cli.serve import parser
from galley.config.flags import Flag
from galley.config.resolve import from_kwargs
from galley.config.server import ServerConfig
from galley.config.vllm_flags import HOLDS, disposition
from galley.errors import ConfigError
from galley.observability.catalog import BLOCK_METRICS
from galley.server.protocol.base import NoEffect
from galley.server.protocol.describe import PAGES

ROOT = Path(__file__).parents[2]
WORKS, NOTHING, REFUSED, NOT_YET = "works", "no effect", "refused", "not yet"
HEAD = """# Compatibility with vLLM 0.32

What becomes of every flag, route, metric, environment variable and request field of vLLM 0.32.

* **works**: it does here what it does there.
* **no effect**: accepted; it tunes how vLLM gets to the same answer, and there is nothing to tune.
* **refused**: using it is an error with a sentence that says why; it is not planned.
* **not yet**: as refused, until the feature it belongs to is there. A route answers 404, a metric
  is absent or stays 0, a variable is not read.

This page is made by `make docs` from vLLM's names (`docs/generate/vllm/`) and the running program;
a test keeps it true. Nothing in it is about other versions of vLLM.
"""
Row = tuple[str, str, str]


def load(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((Path(__file__).parent / "vllm" / name).read_text())
    return data


def route_names() -> list[str]:
    return [f"{r['method']} {r['path']}" for r in load("routes.json")["routes"]]


def page(program: Program) -> str:
    """The whole page, in Markdown."""
    flags = load("flags.json")
    sections: list[tuple[str, str, list[Row]]] = [
        ("Commands", "", command_rows(flags)),
        ("Flags of `serve`", "", [flag_row(f) for f in flags["serve"]]),
        ("Flags of other commands", "", other_flag_rows(flags)),
        ("Routes", "", route_rows(program)),
        ("Metrics", METRICS_NOTE, metric_rows(program)),
        ("Environment variables", VARIABLES_NOTE, variable_rows(program)),
        ("Request fields", FIELDS_NOTE, field_rows()),
        ("Python", "", python_rows()),
    ]
    parts = [HEAD, "\n" + summary(sections)]
    for title, note, rows in sections:
        parts.append(f"\n## {title}\n\n{note}{table(rows)}")
    parts.append(f"\n## Checklist of production serving\n\n{CHECKLIST_NOTE}{checklist_table()}")
    return "".join(parts)


def summary(sections: Iterable[tuple[str, str, list[Row]]]) -> str:
    lines = [f"| | {WORKS} | {NOTHING} | {REFUSED} | {NOT_YET} |", "|---|---|---|---|---|"]
    for title, _, rows in sections:
        counts = Counter(verdict for _, verdict, _ in rows)
        assert set(counts) <= {WORKS, NOTHING, REFUSED, NOT_YET}, counts
        cells = " | ".join(str(counts[v]) for v in (WORKS, NOTHING, REFUSED, NOT_YET))
        lines.append(f"| {title} | {cells} |")
    return "\n".join(lines) + "\n"


def table(rows: list[Row]) -> str:
    lines = ["| name | | |", "|---|---|---|"]
    for name, verdict, note in rows:
        shown = f"`{name}`" if "`" not in name else name
        lines.append(f"| {shown} | {verdict} | {note.replace('|', '/')} |")
    return "\n".join(lines) + "\n"


def by_sentence(sentence: str) -> str:
    """A refusal that says "yet" will not last."""
    return NOT_YET if re.search(r"\byet\b|this version", sentence) else REFUSED


# ---------------------------------------------------------------- commands and flags


def command_rows(flags: dict[str, Any]) -> list[Row]:
    rows = []
    for name in ("serve", *flags["commands"]):
        module = COMMANDS.get(name.split(" ")[0])
        known = module is not None and (" " not in name or name in sub_commands())
        verdict, note = (WORKS, "") if known else reasons.COMMANDS[name]
        rows.append((f"vllm {name}", verdict, note))
    return rows


def sub_commands() -> set[str]:
    """Commands of two and three words."""
    from galley.cli.bench import main, sweep

    return {
        *(f"bench {name}" for name in main.COMMANDS),
        *(f"bench sweep {name}" for name in sweep.COMMANDS),
    }


def flag_row(vllm: dict[str, Any]) -> Row:
    name = vllm["name"]
    flag = parser().find(name)[0]
    if flag is None and name not in ("--config", "--help"):
        verdict, sentence = disposition(name[2:].replace("-", "_"))
        if verdict == "hint":
            return name, NOTHING, reasons.HINTS.get(name, "")
        taken = HOLDS.get(name[2:].replace("-", "_"), ())
        but = "".join(f" `{value}` is so anyway." for value in taken)
        return name, by_sentence(sentence), sentence + but
    return name, WORKS, "" if flag is None else flag_note(flag, vllm)


def flag_note(flag: Flag, vllm: dict[str, Any]) -> str:
    """Where the flag is not quite vLLM's."""
    notes = []
    missing = [alias for alias in vllm.get("aliases", ()) if not parser().find(alias)[0]]
    if missing:
        notes.append("without the spelling " + ", ".join(f"`{m}`" for m in missing))
    default = vllm.get("default")
    same = flag.default == default or flag.default in (None, (), "") or default is None
    if not same:
        notes.append(f"default {flag.default} (vLLM: {default})")
    choices = [str(c) for c in flag.choices]
    lacking = [c for c in vllm.get("choices", ()) if choices and str(c) not in choices]
    if lacking:
        notes.append("not yet: " + ", ".join(f"`{c}`" for c in lacking))
    elif choices and "choices" not in vllm:
        notes.append("one of " + ", ".join(f"`{c}`" for c in choices))
    if flag.kind == "int" and flag.default == 1 and not takes_two(flag):
        notes.append("only 1 yet")
    return "; ".join(notes)


def takes_two(flag: Flag) -> bool:
    try:
        if flag.owner is ServerConfig:
            ServerConfig(**{flag.name: 2})
        else:
            from_kwargs({flag.name: 2}, "server", {})
    except ConfigError:
        return False
    return True


def other_flag_rows(flags: dict[str, Any]) -> list[Row]:
    """Flags of the commands that there are, besides those they share with `serve`."""
    from galley.cli import chat
    from galley.cli.bench import serve as bench_serve

    rows = []
    parsers = {
        "chat": chat.parser(),
        "complete": chat.parser("complete"),
        "bench serve": bench_serve.parser(),
    }
    for command, parser_of in parsers.items():
        for name in flags["commands"][command]:
            if name == "--help" or parser_of.find(name)[0]:
                rows.append((f"{command} {name}", WORKS, ""))
            else:
                rows.append((f"{command} {name}", *refusal_of(parser_of, name)))
    return rows


def refusal_of(parser_of: Any, name: str) -> tuple[str, str]:
    notices: list[str] = []
    try:
        parser_of.refuse(name, notices)
    except ConfigError as e:
        if e.message.startswith("unknown option"):
            return NOT_YET, ""
        sentence = e.message.partition(": ")[2] or e.message
        return by_sentence(sentence), sentence
    return NOTHING, ""


# ---------------------------------------------------------------- routes, metrics, variables


def route_rows(program: Program) -> list[Row]:
    rows = []
    for route in load("routes.json")["routes"]:
        name = f"{route['method']} {route['path']}"
        if "--tokens-only (legacy" in route["condition"]:
            rows.append((name, *reasons.route(route)))
        elif name in program.plain:
            guarded = name in program.guarded
            note = "" if guarded == route["key"] else f"key: {guarded}, vLLM: {route['key']}"
            rows.append((name, WORKS, note))
        elif name in program.switched:
            rows.append((name, WORKS, f"with {route['condition']}"))
        else:
            rows.append((name, *reasons.route(route)))
    return rows


#: Observed by their place in a list.
BLOCK_LIVES = {f"vllm:{metric.name}" for metric in BLOCK_METRICS}
METRICS_NOTE = """Names are given without the `_total` of counters. Galley has metrics of its own
beside these: `galley:engine_restarts`, `galley:batch_invariant`, `galley:memory_short`,
`galley:kv_blocks_withheld`.

"""


def metric_rows(program: Program) -> list[Row]:
    touched = "\n".join(
        path.read_text() for path in (ROOT / "galley").rglob("*.py") if path.name != "catalog.py"
    )
    rows = []
    for metric in load("metrics.json")["metrics"]:
        name = metric["name"]
        found = program.metrics.get(name)
        if found is None:
            rows.append((name, *reasons.metric(metric)))
            continue
        notes = []
        if found[0] != metric["type"]:
            notes.append(f"a {found[0]}")
        lacking = set(metric["labels"]) - set(found[1])
        if lacking and found[1]:
            notes.append("without the labels " + ", ".join(sorted(lacking)))
        moved = re.search(rf'"(vllm:)?{re.escape(name.removeprefix("vllm:"))}["\[]', touched)
        if name.startswith("vllm:") and not moved and name not in BLOCK_LIVES:
            rows.append((name, NOT_YET, "there, and always 0: " + reasons.still(name)))
        else:
            rows.append((name, WORKS, "; ".join(notes)))
    return rows


VARIABLES_NOTE = """Each is read as `GALLEY_…` too, where it begins with `VLLM_`, and that wins; a
flag wins over both. Of vLLM's variables, those for kernels, vendors, builds and tests (%d) are left
out here: Galley reads none of them.

"""


def variable_rows(program: Program) -> list[Row]:
    source = "\n".join(
        path.read_text() for path in (ROOT / "galley").rglob("*.py") if path.name != "variables.py"
    )
    rows = []
    for variable in load("variables.json")["variables"]:
        name = variable["name"]
        # Libraries read some for themselves; that alone is not support.
        if name in program.variables and name.removeprefix("VLLM_") in source:
            rows.append((name, WORKS, ""))
        else:
            rows.append((name, *reasons.variable(variable)))
    return rows


# ---------------------------------------------------------------- requests, Python


FIELDS_NOTE = """The fields of requests that there is a route for. [request_fields.md](request_fields.md)
tells their defaults, and what becomes of fields that vLLM does not know.

"""  # noqa: E501
PATHS = {
    "ChatCompletionRequest": "/v1/chat/completions",
    "BatchChatCompletionRequest": "/v1/chat/completions/batch",
    "CompletionRequest": "/v1/completions",
    "ResponsesRequest": "/v1/responses",
    "AnthropicMessagesRequest": "/v1/messages",
    "AnthropicCountTokensRequest": "/v1/messages/count_tokens",
    "TokenizeCompletionRequest": "/tokenize",
    "TokenizeChatRequest": "/tokenize",
    "DetokenizeRequest": "/detokenize",
}


def field_rows() -> list[Row]:
    rows = []
    for request, fields in load("fields.json")["requests"].items():
        reader = PAGES.get(PATHS.get(request, ""))
        if reader is None:
            verdict, sentence = reasons.request(request)
            shown = ", ".join(f"`{f}`" for f in fields)
            rows += [(f"`{request}`: {shown}", verdict, sentence)]
            continue
        acting = {f.encode_name for f in msgspec.structs.fields(reader.type)}
        for field in fields:
            name = f"{PATHS[request]} {field}"
            other = reader.others.get(field)
            if field in acting:
                rows.append((name, WORKS, ""))
            elif other is None:
                rows.append((name, NOT_YET, "ignored, with a warning"))
            elif isinstance(other, NoEffect):
                rows.append((name, NOTHING, other.why))
            else:
                rows.append((name, by_sentence(other.why), other.why))
    return sorted(dict.fromkeys(rows), key=lambda row: row[0].startswith("`"))


def python_rows() -> list[Row]:
    import galley
    from galley import LLM, SamplingParams

    names = load("fields.json")["python"]
    rows = []
    have = set(
        SamplingParams.__struct_fields__
        if hasattr(SamplingParams, "__struct_fields__")
        else SamplingParams.__dataclass_fields__
    )
    for name in names["exports"]:
        works = hasattr(galley, name)
        rows.append((f"vllm.{name}", WORKS if works else NOT_YET, reasons.python(name, works)))
    for name in names["LLM"]:
        works = hasattr(LLM, name)
        rows.append((f"LLM.{name}", WORKS if works else NOT_YET, reasons.python(name, works)))
    for name in (n for n in names["SamplingParams"] if not n.startswith("_")):
        works = name in have
        verdict, note = (WORKS, "") if works else reasons.sampling(name)
        rows.append((f"SamplingParams.{name}", verdict, note))
    return rows


# ---------------------------------------------------------------- checklist


CHECKLIST_NOTE = """What an operator expects of a server, by number, and the test files that carry
the number; `make check-deploy`, `make soak` and `make symptoms` run those outside `tests/…/test_*`.

| | | tests |
|---|---|---|
"""


def checklist_table() -> str:
    held = tests_by_number()
    lines = []
    for number, title in load("checklist.json")["titles"].items():
        files = ", ".join(f"`{f}`" for f in held.get(int(number), ()))
        later = reasons.CHECKLIST.get(int(number), "")
        lines.append(
            f"| {number} | {title.replace('|', ', ')} | {'; '.join(filter(None, (files, later)))} |"
        )
    return "\n".join(lines) + "\n"


def tests_by_number() -> dict[int, list[str]]:
    """Checklist number → files that carry it."""
    found: dict[int, set[str]] = {}
    for folder in ("tests", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            text = path.read_text()
            for numbers in re.findall(r"[Cc]hecklist\s+((?:\d+[\s,–-]*(?:and )?)+)", text):
                for part in re.findall(r"\d+(?:[–-]\d+)?", numbers):
                    low, _, high = part.replace("-", "–").partition("–")
                    for number in range(int(low), int(high or low) + 1):
                        found.setdefault(number, set()).add(str(path.relative_to(ROOT)))
    return {number: sorted(files) for number, files in found.items()}


VARIABLES_NOTE %= len(load("variables.json")["internal"])
