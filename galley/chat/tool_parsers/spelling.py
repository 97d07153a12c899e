"""How a model writes a call that a grammar makes it write."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from galley.chat.tool_parsers.values import parameter_types, string_piece
from galley.errors import Unsupported

#: The schema of arguments that nothing is said of.
ANY_OBJECT: dict[str, Any] = {"type": "object"}
#: Stand in the texts of a spelling for the number of a call, and for its id.
NUMBER, ID = "{number}", "{id}"
_PATTERNS = {NUMBER: "[0-9]{1,9}", ID: "[a-zA-Z0-9]{9}"}
#: Stands for the kind of a parameter in `TaggedSpelling.key_end`.
KIND = "{kind}"
#: Stands for the name of a parameter in `TaggedSpelling.value_end`.
KEY = "{key}"
#: Keywords that limit a text; where texts stand without quotes, a grammar does not keep them.
_LIMITS_OF_TEXT = ("pattern", "minLength", "maxLength", "format", "allOf", "not", "if")
_NOTHING: dict[str, Any] = {"type": "const_string", "value": ""}


class Signature(NamedTuple):
    """A function that may be called: its name, and the schema of its arguments if it is kept."""

    name: str
    parameters: dict[str, Any] | None


class CallSpelling(Protocol):
    """The spelling of calls in a format.

    Attributes:
        triggers: texts that begin calls; nothing else may follow one of them.
        around: markers beside calls, which the model may write anywhere.
        excluded: other texts that the parser takes for the beginning of a call.
        forbidden: the same, as patterns.
        separator: the text between two calls.
        marked: no JSON begins as a call does.
        whole: the tags describe the whole answer with its reasoning.
        leading: calls are the beginning of an answer, or there are none.
        not_leading: what the parser takes for calls at the beginning of an answer, as patterns.
    """

    @property
    def triggers(self) -> tuple[str, ...]: ...
    @property
    def around(self) -> tuple[str, ...]: ...
    @property
    def excluded(self) -> tuple[str, ...]: ...
    @property
    def forbidden(self) -> tuple[str, ...]: ...
    @property
    def separator(self) -> str: ...
    @property
    def marked(self) -> bool: ...
    @property
    def whole(self) -> bool: ...
    @property
    def leading(self) -> bool: ...
    @property
    def not_leading(self) -> tuple[str, ...]: ...

    def tags(self, functions: Sequence[Signature], once: bool) -> list[dict[str, Any]]:
        """The continuations of a trigger, as tags of a structural tag that begin with it.

        Raises:
            Unsupported: a schema that the spelling cannot keep.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class _Spelling:
    """Code shared by spellings; see `CallSpelling`."""

    trigger: str
    around: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    forbidden: tuple[str, ...] = ()
    separator: str = "\n"
    marked: bool = True
    whole: bool = False
    leading: bool = False
    not_leading: tuple[str, ...] = ()

    @property
    def triggers(self) -> tuple[str, ...]:
        return (self.trigger,)


@dataclass(frozen=True, kw_only=True)
class JsonSpelling(_Spelling):
    """`trigger before NAME between {ARGUMENTS} end`.

    Attributes:
        also: other forms of calls.
        style: how arguments are written if not as JSON: a key of `structured.literals.STYLES`.
            `between` and `end` have the brackets around them then.
        quote: what stands before and after texts, where the style leaves that open.
    """

    before: str
    between: str
    end: str
    style: str = "json"
    quote: str = ""
    also: tuple[JsonSpelling, ...] = ()

    @property
    def triggers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.trigger, *(other.trigger for other in self.also))))

    def tags(self, functions: Sequence[Signature], once: bool) -> list[dict[str, Any]]:
        tags = [self._tag(self.trigger, function) for function in functions]
        return tags + [tag for other in self.also for tag in other.tags(functions, once)]

    def _tag(self, trigger: str, function: Signature) -> dict[str, Any]:
        begin = f"{trigger}{self.before}{string_piece(function.name)}{self.between}"
        schema = function.parameters or ANY_OBJECT
        content = {"type": "json_schema", "json_schema": schema, "style": self.style}
        if self.quote:
            content["quote"] = self.quote
        return _tag(begin, content, self.end)


@dataclass(frozen=True, kw_only=True)
class ListSpelling(JsonSpelling):
    """`trigger open [CALL {comma CALL}] close`, with calls as `before NAME between {…} end`."""

    open: str = "["
    comma: str = ", "
    close: str

    def tags(self, functions: Sequence[Signature], once: bool) -> list[dict[str, Any]]:
        calls = {
            "type": "tags_with_separator",
            "separator": self.comma,
            "at_least_one": True,
            "stop_after_first": once,
            "tags": [self._tag("", function) for function in functions],
        }
        return [_tag(f"{self.trigger}{self.open}", calls, self.close)]


@dataclass(frozen=True, kw_only=True)
class LeadingSpelling(ListSpelling):
    """A list that is the whole answer: nothing but its first call marks it."""

    leading: bool = True

    def tags(self, functions: Sequence[Signature], once: bool) -> list[dict[str, Any]]:
        # A grammar tells a list from text by the whole beginning of the first call.
        calls = [self._tag("", function) for function in functions]
        one = {"type": "or", "elements": calls}
        comma = {"type": "const_string", "value": self.comma}
        more = {"type": "star", "content": {"type": "sequence", "elements": [comma, one]}}
        tags = []
        for call in calls:
            end = {"type": "const_string", "value": call["end"]}
            parts = [call["content"], end, *([] if once else [more])]
            content = {"type": "sequence", "elements": parts}
            tags.append(_tag(f"{self.trigger}{self.open}{call['begin']}", content, self.close))
        return tags


@dataclass(frozen=True, kw_only=True)
class TaggedSpelling(_Spelling):
    """`trigger before NAME after {key_begin KEY key_end VALUE value_end} end`.

    Parameters come in the order of the schema. A text ends at the first `value_end`.

    Attributes:
        kinds: type of a parameter → what stands for `KIND` in `key_end`; "" for any other.
        plain: further texts that begin with the trigger and are no calls.
        doubled: a name may be written twice, with a dot between.
    """

    before: str
    after: str
    key_begin: str
    key_end: str
    value_end: str
    end: str
    kinds: tuple[tuple[str, str], ...] = ()
    plain: tuple[str, ...] = ()
    doubled: bool = False

    def tags(self, functions: Sequence[Signature], once: bool) -> list[dict[str, Any]]:
        calls = [
            _tag(
                f"{self.trigger}{self.before}{name}{self.after}",
                self._content(function),
                self.end,
            )
            for function in functions
            for name in (function.name, f"{function.name}.{function.name}")[: 1 + self.doubled]
        ]
        return [*calls, *(_tag(text, _NOTHING, "") for text in self.plain)]

    def _content(self, function: Signature) -> dict[str, Any]:
        parameters = function.parameters
        if parameters is None:
            return {"type": "star", "content": self._any_member()}
        required = parameters.get("required") or ()
        members = []
        for key, schema in (parameters.get("properties") or {}).items():
            member = self._member(function.name, key, schema, parameters)
            if key not in required:
                member = {"type": "optional", "content": member}
            members.append(member)
        return {"type": "sequence", "elements": members} if members else _NOTHING

    def _any_member(self) -> dict[str, Any]:
        text = {"type": "any_text"}
        kinds = sorted({kind for _, kind in self.kinds}) or [""]
        ends = [self.key_end.replace(KIND, kind) for kind in kinds]
        key = {**_tag(self.key_begin, text, ""), "end": ends}
        return {"type": "sequence", "elements": [key, _tag("", text, self.value_end)]}

    def _member(self, name: str, key: str, schema: Any, root: dict[str, Any]) -> dict[str, Any]:
        types = parameter_types(root, key)
        kinds = dict(self.kinds)
        kind = kinds.get(next(iter(types)) if len(types) == 1 else "", kinds.get("", ""))
        begin = f"{self.key_begin}{key}{self.key_end.replace(KIND, kind)}"
        end = self.value_end.replace(KEY, key)
        return _tag(begin, self._value(name, key, schema, root, types), end)

    def _value(
        self, name: str, key: str, schema: Any, root: dict[str, Any], types: frozenset[str]
    ) -> dict[str, Any]:
        if types != {"string"}:
            definitions = {k: root[k] for k in ("$defs", "definitions") if k in root}
            schema = {**schema, **definitions} if isinstance(schema, dict) else schema
            return {"type": "json_schema", "json_schema": schema}
        for keyword in _LIMITS_OF_TEXT:
            if keyword in schema:
                raise Unsupported(
                    f"strict: the parameter {key!r:.100} of {name!r:.100} has the keyword "
                    f"{keyword}, which this server's format of calls cannot keep.",
                    field="tools",
                )
        texts = schema.get("enum") or ([schema["const"]] if "const" in schema else None)
        if texts is None:
            return {"type": "any_text"}
        constants = [{"type": "const_string", "value": text} for text in texts]
        return {"type": "or", "elements": constants}


@dataclass(frozen=True, kw_only=True)
class NestedSpelling(TaggedSpelling):
    """The same with `KEY` in `value_end`, and a mark before each tag, which begins `trigger`, too.

    Values that are no texts are JSON; calls of functions without a schema have tags in any order.
    """

    def _content(self, function: Signature) -> dict[str, Any]:
        parts = []
        if function.parameters is not None:
            parts.append(super()._content(function))
        else:
            tag = {"type": "regex", "pattern": r"(?!</invoke>)</?[^<>]+>"}
            text = _tag("", {"type": "any_text"}, self.trigger)
            parts.append({"type": "star", "content": {"type": "sequence", "elements": [text, tag]}})
        return {"type": "sequence", "elements": [*parts, {"type": "regex", "pattern": "\n?"}]}


@dataclass(frozen=True)
class HarmonySpelling:
    """Messages of gpt-oss. A call is the last one of an answer; other text ends with a marker."""

    triggers: tuple[str, ...] = ("<|channel|>", "<|start|>")
    around: tuple[str, ...] = ("<|end|>",)
    excluded: tuple[str, ...] = (" to=functions.", "<|message|>", "<|call|>", "<|return|>")
    forbidden: tuple[str, ...] = ()
    separator: str = ""
    marked: bool = False
    whole: bool = True
    leading: bool = False
    not_leading: tuple[str, ...] = ()

    def tags(self, functions: Sequence[Signature], once: bool) -> list[dict[str, Any]]:
        tags = []
        for start in ("<|channel|>", "<|start|>assistant<|channel|>"):
            for channel in ("analysis", "commentary", "final"):
                tags.append(_tag(f"{start}{channel}<|message|>", _NOTHING, ""))
            for function in functions:
                to = f"{start}commentary to=functions.{function.name} "
                begin = f"{to}<|constrain|>json<|message|>"
                schema = function.parameters or ANY_OBJECT
                content = {"type": "json_schema", "json_schema": schema}
                tags.append({**_tag(begin, content, ""), "last": True})
        return tags


def _tag(begin: str, content: dict[str, Any], end: str) -> dict[str, Any]:
    first, *rest = re.split(f"({re.escape(NUMBER)}|{re.escape(ID)})", begin)
    if rest:
        parts: list[dict[str, Any]] = [
            {"type": "regex", "pattern": _PATTERNS[text]}
            if text in _PATTERNS
            else {"type": "const_string", "value": text}
            for text in rest
        ]
        content = {"type": "sequence", "elements": [*parts, content]}
    return {"type": "tag", "begin": first, "content": content, "end": end}
