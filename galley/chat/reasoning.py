"""Formats of reasoning before an answer, by vLLM's names for --reasoning-parser: an open set."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from galley.chat.parts import Content, Reasoning
from galley.chat.scanner import Markers, Scanner, Steps


class ReasoningFormat(Protocol):
    """The format in which a family of models writes reasoning.

    Attributes:
        special: markers may be special tokens.
        start, end: the markers around reasoning.
    """

    @property
    def special(self) -> bool: ...
    @property
    def start(self) -> str: ...
    @property
    def end(self) -> str: ...

    def markers(self, prompt: str) -> tuple[str, str]:
        """The markers around the reasoning of an answer to this prompt."""
        ...

    def begun(self, prompt: str) -> bool | None:
        """Whether an answer to this prompt begins inside reasoning; None: its text shows it."""
        ...

    def steps(self, scan: Scanner, begun: bool | None) -> Steps[None]:
        """Read a whole text and yield its reasoning and content; `begun` is of its prompt."""
        ...


@dataclass(frozen=True)
class TagReasoning:
    """Reasoning between two tags at the start of the answer.

        before ── START ──▶ reasoning ── END ──▶ content
           └── any other text but spaces ──────────▲

    Attributes:
        starts, ends: spellings of the tags; the first is the usual one.
        implicit: an answer begins inside reasoning unless the prompt has ended it.
        also_ends: markers that end reasoning and belong to the content.
        noise: markers in the content that are no part of it.
    """

    starts: tuple[str, ...] = ("<think>",)
    ends: tuple[str, ...] = ("</think>",)
    implicit: bool = False
    also_ends: tuple[str, ...] = ()
    noise: tuple[str, ...] = ()
    special: bool = True
    _ends: Markers = field(init=False, repr=False, compare=False)
    _noise: Markers | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_ends", Markers(*self.ends, *self.also_ends))
        object.__setattr__(self, "_noise", Markers(*self.noise) if self.noise else None)

    @property
    def start(self) -> str:
        return self.starts[0]

    @property
    def end(self) -> str:
        return self.ends[0]

    def markers(self, prompt: str) -> tuple[str, str]:
        """Of several spellings, those that the prompt has begun with, else the usual ones; of the
        end what all its spellings end with, if they do.
        """
        tail = prompt.rstrip()
        begun = (i for i, start in enumerate(self.starts) if tail.endswith(start.rstrip()))
        place = next(begun, 0)
        end = self.ends[place] if len(self.ends) == len(self.starts) else self.ends[0]
        return self.starts[place], min((e for e in self.ends if end.endswith(e)), key=len)

    def begun(self, prompt: str) -> bool | None:
        tail = prompt.rstrip()
        if tail.endswith(self.ends):
            return False
        if self.implicit or tail.endswith(tuple(start.rstrip() for start in self.starts)):
            return True
        return None

    def steps(self, scan: Scanner, begun: bool | None) -> Steps[None]:
        if begun is not False:
            scan.mark()
            yield from scan.spaces()
            started = yield from self._started(scan)
            if started or begun:
                if not started:
                    scan.rewind()
                scan.commit()
                marker = yield from scan.pass_until(self._ends, Reasoning)
                if marker in self.also_ends:
                    scan.back(len(marker))
            else:
                scan.rewind()
        while self._noise is not None:
            if not (yield from scan.pass_until(self._noise, Content)):
                return
        yield from scan.pass_rest(Content)

    def _started(self, scan: Scanner) -> Steps[bool]:
        for start in self.starts:
            if (yield from scan.accept(start)):
                return True
        return False


@dataclass(frozen=True)
class ThinkingAsContent:
    """Reasoning stays in the content, with the tag that the prompt has begun it with."""

    start: str = "<think>"
    end: str = "</think>"
    special: bool = True

    def markers(self, prompt: str) -> tuple[str, str]:
        return self.start, self.end

    def begun(self, prompt: str) -> bool | None:
        return prompt.rstrip().endswith(self.start)

    def steps(self, scan: Scanner, begun: bool | None) -> Steps[None]:
        if begun:
            yield Content(self.start)
        yield from scan.pass_rest(Content)


_THINK = TagReasoning()
_BEGUN = TagReasoning(implicit=True)
_COHERE = TagReasoning(
    ("<|START_THINKING|>",),
    ("<|END_THINKING|>",),
    noise=("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>"),
)

_HUNYUAN = TagReasoning(("<think:opensource>", "<think>"), ("</think:opensource>", "</think>"))

#: Name → format. "think_tags" is Galley's own name of the common one.
REASONING_PARSERS: dict[str, ReasoningFormat] = {
    "cohere_command3": _COHERE,
    "cohere_command4": _COHERE,
    "deepseek_r1": _BEGUN,
    "deepseek_v3": _THINK,
    "deepseek_v4": _THINK,
    "deepseek_v41": _THINK,
    "ernie45": TagReasoning(implicit=True, noise=("<response>", "</response>")),
    "gemma4": TagReasoning(("<|channel>thought\n", "<|channel>thought"), ("<channel|>",)),
    "glm45": _THINK,
    "glm47": _THINK,
    "granite": TagReasoning(
        ("Here is my thought process:", "Here's my thought process:"),
        ("Here is my response:", "Here's my response:"),
        special=False,
    ),
    "granite_thinking_parser": TagReasoning(noise=("<response>", "</response>")),
    "holo2": _THINK,
    "hunyuan_a13b": TagReasoning(
        ("<think>\n", "<think>"),
        ("\n</think>", "</think>"),
        noise=("\n<answer>\n", "\n</answer>", "<answer>", "</answer>"),
    ),
    "hy_v3": _HUNYUAN,
    "hy_v4": _HUNYUAN,
    "k2_horizon": TagReasoning(
        ("<ifm|think>", "<ifm|think_fast>", "<ifm|think_faster>"),
        ("</ifm|think>", "</ifm|think_fast>", "</ifm|think_faster>"),
        implicit=True,
        also_ends=("<ifm|tool_calls>",),
    ),
    "kimi_k2": TagReasoning(also_ends=("<|tool_calls_section_begin|>",)),
    "kimi_k3": TagReasoning(
        ("<|open|>think<|sep|>",),
        ("<|close|>think<|sep|>",),
        noise=("<|open|>response<|sep|>", "<|close|>response<|sep|>", "<|close|>message<|sep|>"),
    ),
    "ling3": _THINK,
    "mimo": _THINK,
    "minicpmv": _THINK,
    "minimax_m2": _BEGUN,
    "minimax_m2_append_think": ThinkingAsContent(),
    "minimax_m3": TagReasoning(("<mm:think>",), ("</mm:think>",)),
    "mistral": TagReasoning(("[THINK]",), ("[/THINK]",)),
    "nemotron_v3": _THINK,
    "olmo3": _BEGUN,
    "plamo3": TagReasoning(
        ("<|plamo:begin_think:plamo|>",),
        ("<|plamo:end_think:plamo|>",),
        implicit=True,
        also_ends=("<|plamo:begin_tool_requests:plamo|>",),
        noise=("<|plamo:tag|>",),
    ),
    "poolside_v1": _THINK,
    "qwen3": _THINK,
    "seed_oss": TagReasoning(("<seed:think>",), ("</seed:think>",)),
    "step3": _BEGUN,
    "step3p5": _BEGUN,
    "think_tags": _THINK,
}
