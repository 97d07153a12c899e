"""The parsers of a server: which formats its model writes, and the parser of one choice."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

from galley.chat.parts import AssistantParser, Chain, WithoutReasoning
from galley.chat.reasoning import REASONING_PARSERS, ReasoningFormat
from galley.chat.reasoning_count import ReasoningCount
from galley.chat.scanner import Scanner, ScanningParser, Steps
from galley.chat.tool_parsers import CALL_IDS, TOOL_PARSERS
from galley.chat.tool_parsers.call_spellings import CALL_SPELLINGS
from galley.chat.tool_parsers.calls import (
    CallWriter,
    JointFormat,
    ToolFormat,
    ToolParser,
    random_id,
)
from galley.chat.tool_parsers.hunyuan import hunyuan_suffix, with_suffix
from galley.chat.tool_parsers.json_calls import JsonCalls
from galley.chat.tool_parsers.spelling import CallSpelling
from galley.chat.tools import FunctionTool, ToolChoice
from galley.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class OneCall:
    """The whole text is the arguments of one call (a named tool choice)."""

    name: str
    special: bool = False

    def steps(self, scan: Scanner, calls: CallWriter) -> Steps[None]:
        yield calls.start(self.name)
        yield from scan.pass_rest(calls.arguments)


#: vLLM's names of parsers that there are none of here, and why.
REFUSED = {
    "hf": "the response templates of transformers are not read; name the parser of the model's "
    "family.",
}
#: The text of `tool_choice: "required"`: a list of objects with name and parameters.
_CALL_LIST = JsonCalls(special=False)


class ReasoningMarkers(NamedTuple):
    """The markers around reasoning.

    Attributes:
        begun: the prompt has begun it.
        calls_inside: calls come before the end marker, and the answer may end with one.
        close: what ends reasoning that takes too long; "": the end marker.
        parts: the markers around the parts that count as reasoning; (): all of it does.
    """

    start: str
    end: str
    begun: bool
    calls_inside: bool = False
    close: str = ""
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class OutputFormats:
    """Formats that the model of a server writes.

    Attributes:
        reasoning: None: no text is reasoning.
        tools: None: no text is a call.
        new_id: (name, index) → id of a call.
        spelling: of calls that a grammar makes; None: no grammar can.
    """

    reasoning: ReasoningFormat | JointFormat | None = None
    tools: ToolFormat | None = None
    new_id: Callable[[str, int], str] = random_id
    spelling: CallSpelling | None = None

    def parser(
        self,
        prompt: str,
        tools: Sequence[FunctionTool] = (),
        choice: ToolChoice | None = None,
        reasoning: bool = True,
        width: Callable[[int], int] | None = None,
    ) -> AssistantParser | None:
        """The parser of one answer to `prompt`; None where the text is the answer.

        Args:
            tools: that the conversation offers.
            reasoning: show it.
            width: the number of bytes that a token adds to a text; tokens of reasoning are counted.
        """
        count = None if width is None or self.reasoning is None else ReasoningCount(width)
        parser = self._parser(prompt, tools, choice or ToolChoice(), count)
        if parser is None or reasoning or self.reasoning is None:
            return parser
        return WithoutReasoning(parser)

    def _parser(
        self,
        prompt: str,
        tools: Sequence[FunctionTool],
        choice: ToolChoice,
        count: ReasoningCount | None,
    ) -> AssistantParser | None:
        calls = CallWriter(choice.callable(tools), self.new_id)
        reasoning = self.reasoning
        if isinstance(reasoning, JointFormat):
            own = ToolParser(reasoning, calls, choice.parallel, count)
            forced = self._tool_parser(choice, calls) if choice.forced else None
            return own if forced is None else Chain(own, forced)
        parser = self._tool_parser(choice, calls)
        if reasoning is None:
            return parser
        begun = reasoning.begun(prompt)
        thinking = ScanningParser(
            lambda scan: reasoning.steps(scan, begun), reasoning.special, count
        )
        return thinking if parser is None else Chain(thinking, parser)

    @property
    def limits_reasoning(self) -> bool:
        """Whether the length of reasoning can be limited."""
        return self.reasoning is not None

    def reasoning_markers(self, prompt: str) -> ReasoningMarkers | None:
        """None where an answer to `prompt` has no reasoning."""
        reasoning = self.reasoning
        if reasoning is None:
            return None
        if isinstance(reasoning, JointFormat):
            return ReasoningMarkers(
                *(reasoning.start, reasoning.end, True, True),
                close=reasoning.part_end + reasoning.between + reasoning.end,
                parts=(reasoning.start, reasoning.part_end),
            )
        begun = reasoning.begun(prompt)
        if begun is False:
            return None
        start, end = reasoning.markers(prompt)
        return ReasoningMarkers(start, end, bool(begun))

    def _tool_parser(self, choice: ToolChoice, calls: CallWriter) -> ToolParser | None:
        if choice.mode == "required":
            return ToolParser(_CALL_LIST, calls, choice.parallel)
        if choice.mode == "named" and choice.name is not None:
            return ToolParser(OneCall(choice.name), calls)
        if choice.mode == "auto" and self.tools is not None:
            return ToolParser(self.tools, calls, choice.parallel)
        return None


def open_formats(
    reasoning: str = "",
    tools: str | None = None,
    plugins: Mapping[str, str] | None = None,
    tokens: Iterable[str] = (),
) -> OutputFormats:
    """The formats of these names.

    Args:
        tokens: that the tokenizer matches whole; the markers of some formats follow from them.
        plugins: flag → file of formats of one's own: a Python module with the tables
            `TOOL_PARSERS` or `REASONING_PARSERS`, name → format.

    Raises:
        ConfigError: an unknown name, with those that exist, or a file that cannot be loaded.
    """
    tool_formats: dict[str, Any] = dict(TOOL_PARSERS)
    reasoning_formats: dict[str, Any] = {
        **REASONING_PARSERS,
        "inkling": TOOL_PARSERS["inkling"],
        "muse_glimmer": TOOL_PARSERS["muse_glimmer"],
        "openai_gptoss": TOOL_PARSERS["openai"],
    }
    for flag, file in (plugins or {}).items():
        if file:
            module = _load(flag, file)
            tool_formats |= getattr(module, "TOOL_PARSERS", {})
            reasoning_formats |= getattr(module, "REASONING_PARSERS", {})
    tool_format = _of(tool_formats, "tool_call_parser", tools)
    reasoning_format = _of(reasoning_formats, "reasoning_parser", reasoning)
    if isinstance(tool_format, JointFormat):
        reasoning_format = tool_format
    name = tools or ""
    spelling = CALL_SPELLINGS.get(name)
    if "hy_v" in name + reasoning and (suffix := hunyuan_suffix(tokens)) is not None:
        reasoning_format, tool_format, spelling = (
            with_suffix(format, suffix) for format in (reasoning_format, tool_format, spelling)
        )
    return OutputFormats(reasoning_format, tool_format, CALL_IDS.get(name, random_id), spelling)


def _of(formats: Mapping[str, T], field: str, name: str | None) -> T | None:
    if not name:
        return None
    if name in REFUSED:
        raise ConfigError(
            f"--{field.replace('_', '-')} {name} is not supported: {REFUSED[name]}", field=field
        )
    if name not in formats:
        raise ConfigError(
            f"--{field.replace('_', '-')} {name:.100}: there is no such parser; one of "
            f"{', '.join(sorted(formats))}.",
            field=field,
        )
    return formats[name]


def _load(flag: str, file: str) -> ModuleType:
    path = Path(file).expanduser()
    option = "--" + flag.replace("_", "-")
    spec = importlib.util.spec_from_file_location(f"galley_plugin_{path.stem}", path)
    try:
        if spec is None or spec.loader is None:
            raise ImportError("it is not a Python file")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except Exception as error:  # noqa: BLE001 - a plugin is a program and can raise anything
        raise ConfigError(f"{option} {file:.200}: {error}", field=flag) from None
    if not (hasattr(module, "TOOL_PARSERS") or hasattr(module, "REASONING_PARSERS")):
        raise ConfigError(
            f"{option} {file:.200}: it defines neither TOOL_PARSERS nor REASONING_PARSERS.",
            field=flag,
        )
    return module
