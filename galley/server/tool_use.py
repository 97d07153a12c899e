"""A request's settings of tools and reasoning, in the form in which all three APIs use them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from galley.chat.tools import FunctionTool, ToolChoice
from galley.errors import InvalidRequest, Unsupported
from galley.request import ReasoningLimits, SamplingParams, StructuredOutputsParams

if TYPE_CHECKING:
    from galley.chat.tool_parsers.spelling import CallSpelling
    from galley.config.server import ServerConfig
    from galley.observability.tool_metrics import RequestType
    from galley.server.context import Context


@dataclass(frozen=True)
class ToolUse:
    """The tools of a conversation.

    Attributes:
        shown: tools that the prompt describes.
        reasoning: the answer shows reasoning.
        thinking_budget: most tokens of reasoning.
        request_type, streaming: of the request, for metrics.
    """

    tools: tuple[FunctionTool, ...] = ()
    choice: ToolChoice = field(default_factory=ToolChoice)
    shown: tuple[FunctionTool, ...] = ()
    reasoning: bool = True
    thinking_budget: int | None = None
    request_type: RequestType = "other"
    streaming: bool = False

    def for_template(self) -> list[dict[str, Any]] | None:
        """The tools as chat templates expect them; None: there are none."""
        return [tool.for_template() for tool in self.shown] or None


def tool_use(
    server: ServerConfig,
    tools: Sequence[FunctionTool],
    choice: ToolChoice | None,
    *,
    given: bool,
    reasoning: bool = True,
    thinking_budget: int | None = None,
    request_type: RequestType = "other",
    streaming: bool = False,
) -> ToolUse:
    """Check what a request says of tools, for this server's flags.

    Args:
        tools: in the request.
        choice: None: as the model likes, where there are tools.
        given: the request has a list of tools, which may be empty.
        reasoning, thinking_budget, request_type, streaming: see `ToolUse`.

    Raises:
        InvalidRequest: a choice without tools, or of one that does not exist; "auto" where the
            server does not know how the model writes calls.
    """
    if choice is None:
        choice = ToolChoice("auto" if tools else "none")
    if choice.mode == "none":
        shown = () if server.exclude_tools_when_tool_choice_none else tuple(tools)
        return ToolUse(tuple(tools), choice, shown, reasoning, thinking_budget)
    if not given:
        raise InvalidRequest("When using `tool_choice`, `tools` must be set.", field="tool_choice")
    names = {tool.name for tool in tools}
    wanted = (choice.name or "",) if choice.mode == "named" else choice.allowed
    for name in wanted:
        if name not in names:
            raise InvalidRequest(
                f"The tool {name!r:.100} specified in `tool_choice` does not match any of the "
                "specified `tools`.",
                field="tool_choice",
            )
    if not tools:
        choice = replace(choice, mode="none")
    if choice.mode == "auto" and not (server.enable_auto_tool_choice and server.tool_call_parser):
        raise InvalidRequest(
            '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be '
            "set",
            field="tool_choice",
        )
    offered = tuple(tools)
    return ToolUse(offered, choice, offered, reasoning, thinking_budget, request_type, streaming)


async def constrained(
    ctx: Context, params: SamplingParams, prompt: str, use: ToolUse
) -> SamplingParams:
    """`params` whose answer calls the tools that it must call and thinks no longer than it may.

    A constraint, also one that the request brings itself, applies to what follows the reasoning
    where the prompt has begun it, and to the whole answer otherwise.

    Raises:
        Unsupported: the format of the model's calls cannot be constrained.
        InvalidRequest: the parameters of a function are nested too deeply.
    """
    try:
        output, whole = _constraint(ctx, params.structured_outputs, prompt, use)
    except RecursionError:
        raise InvalidRequest("tools: parameters are nested too deeply.", field="tools") from None
    limits = await _reasoning_limits(ctx, prompt, use, output is not None and not whole)
    if output is not None and limits is not None and limits.constrained_after:
        output = msgspec.structs.replace(output, start_after=[limits.reasoning.end])
    reasoning = None if limits is None else limits.reasoning
    if output is params.structured_outputs and reasoning is None:
        return params
    return msgspec.structs.replace(params, structured_outputs=output, reasoning_limits=reasoning)


def _constraint(
    ctx: Context, given: StructuredOutputsParams | None, prompt: str, use: ToolUse
) -> _Constraint:
    """The constraint of the answer, where the request brings `given` for its text."""
    if use.choice.mode == "none":
        return _Constraint(given)
    from galley.chat.tool_schema import schema_of, tag_of  # only for requests with tools

    schema = schema_of(use.tools, use.choice)
    if schema is not None:
        return _Constraint(
            StructuredOutputsParams(json=schema, whitespace_pattern=" ?", source="tools")
        )
    strict = any(tool.strict for tool in use.choice.callable(use.tools))
    if given is None and not strict:
        return _Constraint(None)
    spelling = None if ctx.formats is None else ctx.formats.spelling
    special = {} if spelling is None else _special_tokens(ctx, spelling)
    if special is None:
        spelling = None
    if given is not None:
        text = _schema_of_text(given)
        if text is None or spelling is None or not spelling.marked:
            return _Constraint(given)
        tag = tag_of(use.tools, use.choice, spelling, text)
        encoded = msgspec.json.encode(tag).decode()
        options = {"json": None, "json_object": None, "special_tokens": special}
        return _Constraint(msgspec.structs.replace(given, structural_tag=encoded, **options))
    if spelling is None:
        raise Unsupported(
            "strict functions are not supported by the tool call parser "
            f"{ctx.server.tool_call_parser} with `tool_choice` auto: leave `strict` out, or choose "
            "`required` or a named function.",
            field="tools",
        )
    thinking = _thinking_tokens(ctx, prompt)
    tag = tag_of(use.tools, use.choice, spelling, tokens=tuple(thinking))
    encoded = msgspec.json.encode(tag).decode()
    params = StructuredOutputsParams(
        structural_tag=encoded, special_tokens={**thinking, **(special or {})}, source="tools"
    )
    return _Constraint(params, spelling.whole)


def _special_tokens(ctx: Context, spelling: CallSpelling) -> dict[str, int] | None:
    """The special tokens in the texts of calls; None where a grammar cannot have them."""
    from galley.chat.tool_schema import texts_of

    texts = texts_of(spelling)
    found: dict[str, int] = {}
    for text in texts:
        found |= _special_in(ctx, text)
    for trigger in spelling.triggers:
        marks = [mark for mark in found if mark in trigger]
        if marks and not trigger.startswith(tuple(marks)):
            return None
    return found


def _special_in(ctx: Context, text: str) -> dict[str, int]:
    """The special tokens of a text."""
    tokenizer = ctx.require_tokenizer()
    ids = tokenizer.special_ids.intersection(tokenizer.encode(text, False))
    return {token: id for id in ids if (token := tokenizer.id_to_token(id)) and token in text}


def _thinking_tokens(ctx: Context, prompt: str) -> dict[str, int]:
    """Special tokens around reasoning that the answer itself may begin."""
    markers = None if ctx.formats is None else ctx.formats.reasoning_markers(prompt)
    if markers is None or markers.begun:
        return {}
    return _special_in(ctx, markers.start) | _special_in(ctx, markers.end)


def _schema_of_text(given: StructuredOutputsParams) -> Any:
    """The JSON schema of a constraint; None where it is of another kind, or not valid JSON."""
    if given.json_object:
        return {"type": "object"}
    if not isinstance(given.json, str):
        return given.json
    try:
        return msgspec.json.decode(given.json)
    except msgspec.DecodeError:
        return None


class _Constraint(NamedTuple):
    """A constraint, and whether it describes the whole answer, reasoning included."""

    params: StructuredOutputsParams | None
    whole: bool = False


class _Limits(NamedTuple):
    """Limits of reasoning, and whether a constraint applies to what follows it alone."""

    reasoning: ReasoningLimits
    constrained_after: bool


async def _reasoning_limits(
    ctx: Context, prompt: str, use: ToolUse, constrained: bool
) -> _Limits | None:
    """Limits of the reasoning of an answer that has a budget of it or a constraint after it."""
    formats, budget = ctx.formats, use.thinking_budget
    if budget is not None and (formats is None or not formats.limits_reasoning):
        raise InvalidRequest(
            "A budget of thinking tokens needs --reasoning-parser with a format that has markers.",
            field="thinking_token_budget",
        )
    markers = None if formats is None else formats.reasoning_markers(prompt)
    if markers is None:
        return None
    inside = ctx.config.structured.settings.enable_in_reasoning
    after = constrained and markers.begun and not inside
    if budget is None and not after:
        return None
    names = (markers.start, markers.end, *markers.parts)
    start, end, *parts = [await ctx.marker_of(name) for name in names]
    close = tuple(ctx.require_tokenizer().encode(markers.close, False)) if markers.close else ()
    must_end = after and not (markers.calls_inside and use.choice.mode == "auto")
    limits = ReasoningLimits(
        *(start, end, markers.begun, budget, must_end, close),
        parts=(parts[0], parts[1]) if parts and budget is not None else None,
    )
    return _Limits(limits, after)
