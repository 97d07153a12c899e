"""Command lines from configuration dataclasses, with vLLM's conventions.

Dashes and underscores are alike; booleans have ``--no-`` forms; JSON flags take dotted keys;
``--config FILE`` (YAML) supplies flags that the command line does not; ``--help=GROUP``,
``--help=FLAG`` and ``--help=all`` teach. Knows flags, not what they do.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from galley.config.flags import Flag, coerce, flags_of
from galley.config.resolve import SECTIONS
from galley.config.server import ServerConfig
from galley.config.vllm_flags import asks, disposition, groups_of_vllm
from galley.errors import ConfigError

T = TypeVar("T")
#: Groups of flags that several commands share: their short help lists them by name.
SHARED: tuple[type, ...] = (ServerConfig, *SECTIONS.values())
_MODEL = "The model is an argument: MODEL, a directory, FILE.gguf or hub name."
_NO_LAYERS = "The model runs on the processor: there are no layers to give to a GPU."
#: Flags of llama-server, and what has their meaning here.
FOREIGN = {
    **dict.fromkeys(("-c", "--ctx-size"), "Did you mean --max-model-len?"),
    **dict.fromkeys(("-m", "-hf", "--hf-repo"), _MODEL),
    **dict.fromkeys(("-t", "--threads"), "Did you mean --num-threads?"),
    **dict.fromkeys(("-np", "--parallel"), "Did you mean --max-num-seqs?"),
    **dict.fromkeys(("-b", "--batch-size"), "Did you mean --max-num-batched-tokens?"),
    **dict.fromkeys(("-ngl", "--n-gpu-layers", "--gpu-layers"), _NO_LAYERS),
    **dict.fromkeys(("-a", "--alias"), "Did you mean --served-model-name?"),
    "--version": "`galley --version` prints it.",
}
#: Given values, by the dataclass whose fields they are.
Given = dict[type, dict[str, Any]]


@dataclass
class Parsed:
    """Values by field name (the command line overrides the file), and notices for the log."""

    values: dict[str, Any]
    positionals: list[str]
    notices: list[str] = field(default_factory=list)


class CommandParser:
    """Parses one command's arguments.

    Args:
        command: as typed, e.g. "serve".
        summary: what the command does, a sentence or two.
        groups: dataclasses whose fields are the flags, in help order.
        positionals: (name, help) of the optional positional arguments; as many as are given of one
            whose name ends with "…".
        examples: lines shown at the end of the short help.
        first: names of shared flags that the short help describes, because many need them.
        without: names of shared flags that the command does not take.

    Attributes:
        sources: where the values of the last `parse` came from: "command line" or "--config", by
            name.
    """

    def __init__(
        self,
        command: str,
        summary: str,
        groups: Iterable[type],
        positionals: tuple[tuple[str, str], ...] = (),
        examples: tuple[str, ...] = (),
        first: tuple[str, ...] = (),
        without: tuple[str, ...] = (),
    ) -> None:
        self.command = command
        self.summary = summary
        self.groups = list(groups)
        self.positionals = positionals
        self.examples = examples
        self.first = first
        self.sources: dict[str, str] = {}
        self._without = without
        self.flags: dict[str, Flag] = {f.name: f for g in self.groups for f in self._flags_of(g)}
        # A spelling of two is the earlier one's: `-q` is --quick where there is that.
        self._by_spelling = {s: f for f in reversed(self.flags.values()) for s in f.spellings}

    def _flags_of(self, group: type) -> list[Flag]:
        return [flag for flag in flags_of(group) if flag.name not in self._without]

    def takes_positional(self, num_given: int) -> bool:
        """Whether another positional argument may follow so many."""
        names = self.positionals
        return num_given < len(names) or bool(names and names[-1][0].endswith("…"))

    def parse(self, argv: list[str]) -> Parsed:
        """Parse `argv`. Prints help and exits 0 on --help; raises ConfigError."""
        for i, word in enumerate(argv):
            if word in ("-h", "--help") or word.startswith("--help="):
                after = argv[i + 1] if "=" not in word and i + 1 < len(argv) else ""
                print(self.help(word.partition("=")[2] or ("" if after[:1] == "-" else after)))
                raise SystemExit(0)
        reader = _Reader(self, argv)
        parsed = reader.read()
        self.sources = dict.fromkeys(parsed.values, "command line")
        if parsed.positionals:
            self.sources["model"] = "command line"
        if reader.config_file:
            for name, value in read_yaml(reader.config_file, parsed.positionals).items():
                flag = self.flags.get(name)
                if flag is None:
                    self.refuse(f"--{name.replace('_', '-')}", parsed.notices, value)
                else:
                    parsed.values.setdefault(name, coerce(flag, value))
                    self.sources.setdefault(name, "--config")
        return parsed

    def read(self, argv: list[str]) -> Given:
        """Return values by owning dataclass; a positional is MODEL. Prints notices."""
        parsed = self.parse(argv)
        for notice in parsed.notices:
            print(f"galley: {notice}", file=sys.stderr)
        if parsed.positionals:
            parsed.values["model"] = parsed.positionals[0]
        return self.split(parsed.values)

    def split(self, given: dict[str, Any]) -> Given:
        """Group values by owning dataclass; a field of two dataclasses goes to both."""
        return {
            group: {f.name: given[f.name] for f in self._flags_of(group) if f.name in given}
            for group in self.groups
        }

    def find(self, option: str) -> tuple[Flag | None, bool]:
        """Return the flag spelled `option` and whether it is its ``--no-`` form."""
        normal = "--" + option[2:].replace("_", "-") if option.startswith("--") else option
        if normal in self._by_spelling:
            return self._by_spelling[normal], False
        if normal.startswith("--no-"):
            flag = self._by_spelling.get("--" + normal[5:])
            if flag is not None and flag.kind == "bool":
                return flag, True
        return None, False

    def refuse(self, option: str, notices: list[str], value: Any = True) -> None:
        """Note a vLLM flag that is only a hint, or asks for the default; raise ConfigError
        for any other.
        """
        name = option.lstrip("-").split(".")[0].replace("-", "_")
        for candidate in (name, name.removeprefix("no_")):
            verdict, sentence = disposition(candidate)
            if verdict == "hint":
                notices.append(f"{option} is accepted for compatibility with vLLM: {sentence}")
                return
            if verdict == "refused" and not (candidate == name and asks(name, value)):
                notices.append(f"{option} is accepted: that is the behaviour already.")
                return
            if verdict == "refused":
                raise ConfigError(f"{option} is not supported: {sentence}", field=candidate)
        elsewhere = FOREIGN.get(option)
        if elsewhere is not None:
            raise ConfigError(f"unknown option {option}. {elsewhere}", field=name)
        near = difflib.get_close_matches(option.replace("_", "-"), self._by_spelling, 1, 0.75)
        hint = f" Did you mean {near[0]}?" if near else f" See galley {self.command} --help=all."
        raise ConfigError(f"unknown option {option}.{hint}", field=name)

    def help(self, topic: str = "") -> str:
        """Text for ``--help`` (overview), ``--help=all``, ``--help=GROUP`` or ``--help=FLAG``."""
        width = min(shutil.get_terminal_size().columns, 100)
        if topic:
            return self._help_topic(topic, width)
        usage = f"galley {self.command} " + " ".join(f"[{n}]" for n, _ in self.positionals)
        lines = [f"usage: {usage.rstrip()} [options]", ""]
        lines += textwrap.wrap(self.summary, width)
        if self.positionals:
            lines += ["", "arguments:"]
            lines += [_entry(name, text, width) for name, text in self.positionals]
        own = [f for f in self.flags.values() if f.owner not in SHARED or f.name in self.first]
        if own:
            lines += ["", "options:", *(_describe(f, width) for f in own)]
        shared = self._group_list([group for group in self.groups if group in SHARED], width)
        if shared:
            lines += ["", "option groups (see --help=GROUP, --help=FLAG or --help=all):", *shared]
        if self.examples:
            lines += ["", "examples:", *("  " + e for e in self.examples)]
        return "\n".join(lines)

    def _help_topic(self, topic: str, width: int) -> str:
        wanted = topic.lower().lstrip("-").replace("-", "_").replace(" ", "_")
        for group in self.groups:
            if wanted in (group.__name__.lower(), _title(group).lower().replace(" ", "_")):
                return self._group_help(group, width)
        if wanted in ("all", "page"):
            return "\n\n".join(self._group_help(g, width) for g in self.groups)
        if wanted == "listgroup":
            return "\n".join(self._group_list(self.groups, width))
        theirs = groups_of_vllm().get(wanted)
        if theirs:
            known = [self.flags[name] for name in theirs if name in self.flags]
            others = [_flag_of_vllm(name) for name in theirs if name not in self.flags]
            return "\n".join([*(_describe(f, width) for f in known), *others])
        hits = [f for f in self.flags.values() if f.name == wanted]
        if not hits:
            flags = list(self.flags.values())
            hits = [f for f in flags if wanted in f.name]
            hits += [f for f in flags if f not in hits and topic.lower() in f.help.lower()]
        if hits:
            return "\n".join(_describe(f, width) for f in hits)
        if disposition(wanted)[0] != "unknown":
            return _flag_of_vllm(wanted)
        near = difflib.get_close_matches(wanted, self.flags, 1, 0.7)
        hint = f"Did you mean --help={near[0].replace('_', '-')}?" if near else "See --help."
        raise ConfigError(f"no flag or group matches {topic!r}. {hint}")

    def _group_list(self, groups: list[type], width: int) -> list[str]:
        lines = []
        for group in groups:
            names = " ".join(f.option for f in self._flags_of(group))
            lines += [_entry(_title(group), _sentence(group), width), _entry("", names, width)]
        return lines

    def _group_help(self, group: type, width: int) -> str:
        head = f"{_title(group)}: {_sentence(group)}".rstrip()
        return "\n".join([head, *(_describe(f, width) for f in self._flags_of(group))])


def make(group: type[T], given: Given) -> T:
    """Create the dataclass from its values."""
    return group(**given[group])


def engine_flags(given: Given) -> dict[str, Any]:
    """Return the engine's values by name."""
    return {n: v for section in SECTIONS.values() for n, v in given.get(section, {}).items()}


def _title(group: type) -> str:
    return (group.__doc__ or group.__name__).strip().splitlines()[0].rstrip(".")


def _sentence(group: type) -> str:
    """A sentence on the flags of a group."""
    return (group.__doc__ or "").strip().partition("\n")[2].strip()


def _flag_of_vllm(name: str) -> str:
    return f"--{name.replace('_', '-')}: a flag of vLLM's; {disposition(name)[1]}"


def _entry(head: str, text: str, width: int) -> str:
    wrapped = textwrap.wrap(text, width - 26, break_on_hyphens=False) or [""]
    if len(head) > 22:
        return "\n".join([f"  {head}", *(" " * 26 + w for w in wrapped)])
    return "\n".join([f"  {head:<24}{wrapped[0]}", *(" " * 26 + w for w in wrapped[1:])])


def _describe(flag: Flag, width: int) -> str:
    head = ", ".join(flag.spellings)
    if flag.kind == "bool":
        head += f", --no-{flag.option[2:]}"
    elif flag.choices:
        head += " {" + ",".join(str(c) for c in flag.choices) + "}"
    else:
        head += {
            "int": " N",
            "float": " X",
            "str": " TEXT",
            "switch": " [TEXT]",
            "list": " A [B …]",
        }.get(flag.kind, " JSON")
    text = flag.help
    if flag.default not in (None, (), {}, ""):
        text += f" (default: {flag.default})"
    return "\n".join(
        [
            f"  {head}",
            *(" " * 6 + w for w in textwrap.wrap(text, width - 6, break_on_hyphens=False)),
        ]
    )


class _Reader:
    """One pass over argv."""

    def __init__(self, parser: CommandParser, argv: list[str]) -> None:
        self.parser = parser
        self.words = argv
        self.at = 0
        self.config_file = ""
        self.parsed = Parsed({}, [])

    def read(self) -> Parsed:
        while self.at < len(self.words):
            word = self.words[self.at]
            self.at += 1
            if word.startswith("-") and len(word) > 1 and not _is_number(word):
                self._option(word)
            elif self.parser.takes_positional(len(self.parsed.positionals)):
                self.parsed.positionals.append(word)
            else:
                raise ConfigError(f"unexpected argument {word!r}; see --help.")
        return self.parsed

    def _option(self, word: str) -> None:
        option, eq, inline = word.partition("=")
        if option == "--config":
            self.config_file = inline if eq else self._value(option)
            return
        base, _, dotted = option.partition(".")
        flag, negated = self.parser.find(base)
        if flag is None:
            start = self.at
            while not eq and self._more():
                self.at += 1
            value = inline if eq else " ".join(self.words[start : self.at]) or True
            self.parser.refuse(option, self.parsed.notices, value)
            return
        values = self.parsed.values
        if dotted and flag.kind == "json":
            raw = inline if eq else self._value(option)
            nested = values.setdefault(flag.name, {})
            *path, last = dotted.split(".")
            for key in path:
                nested = nested.setdefault(key, {})
            nested[last] = _json_or_text(raw)
        elif flag.kind == "bool":
            if negated and eq:
                raise ConfigError(f"{option} takes no value.", field=flag.name)
            values[flag.name] = coerce(flag, inline) if eq else not negated
        elif flag.kind == "list":
            given = [inline] if eq else self._many(option)
            # Said several times it adds up, as `--middleware A --middleware B` does in vLLM.
            values[flag.name] = (*values.get(flag.name, ()), *coerce(flag, given))
        elif flag.kind == "switch" and not eq and not self._more():
            values[flag.name] = True
        else:
            values[flag.name] = coerce(flag, inline if eq else self._value(option))

    def _value(self, option: str) -> str:
        if self.at >= len(self.words):
            raise ConfigError(f"{option} needs a value.", field=option.lstrip("-"))
        self.at += 1
        return self.words[self.at - 1]

    def _more(self) -> bool:
        """Whether the next word is a value."""
        return self.at < len(self.words) and not self.words[self.at].startswith("-")

    def _many(self, option: str) -> list[str]:
        start = self.at
        while self._more():
            self.at += 1
        if self.at == start:
            raise ConfigError(f"{option} needs at least one value.", field=option.lstrip("-"))
        return self.words[start : self.at]


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _json_or_text(raw: str) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        return raw


def read_yaml(path: str, positionals: list[str]) -> dict[str, Any]:
    """Flags of a ``--config`` file. `model` also stands in for the positional argument."""
    import yaml

    try:
        with open(path, encoding="utf-8") as f:
            data = yaml.safe_load(f)
    except OSError as e:
        raise ConfigError(f"--config {path}: {e.strerror}.", field="config") from e
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise ConfigError(f"--config {path} is not YAML: {e}.", field="config") from e
    if data is None:
        return {}
    if not isinstance(data, dict) or not all(isinstance(k, str) for k in data):
        raise ConfigError(f"--config {path} must hold `flag: value` lines.", field="config")
    values = {k.replace("-", "_"): v for k, v in data.items()}
    tag = values.pop("model_tag", None)
    if tag is not None:
        values.setdefault("model", tag)
    return values


def run(main: Callable[[], int]) -> int:
    """Run a command. User errors print one line and exit with 2, Ctrl-C exits with 130."""
    from galley.errors import GalleyError, SetupError

    if logging.lastResort is not None:  # of warnings before the log is set up
        logging.lastResort.setFormatter(logging.Formatter("galley: %(message)s"))
    try:
        return main()
    except SetupError as e:
        print(f"galley: {e.message}", file=sys.stderr)
        return 2
    except GalleyError as e:
        print(f"galley: {e.message}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
