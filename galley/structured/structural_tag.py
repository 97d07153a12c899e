"""Structural tags as grammars of llguidance: free text with parts that are constrained.

Both of vLLM's forms are read, the older one with `structures` and `triggers`, and the newer one
with a tree of formats. Free text ends where a trigger, or the end of the tag around it, appears
first; this is what llguidance's lazy terminals are for.

Texts may name special tokens, which no text is made of: then their id stands in the grammar, and
free text neither has the token nor spells it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from llguidance.gbnf_to_lark import gbnf_to_lark

from galley.structured.literals import STYLES, LiteralRules, Style
from galley.structured.regex import (
    Automaton,
    TooManyStates,
    UnsupportedPattern,
    pattern_of,
    whole,
)
from galley.structured.regex.anchors import ANYTHING
from galley.structured.regex.syntax import Chars, Concat, Either, Tree, parse
from galley.structured.regex.text import render
from galley.structured.schema import Refused, SchemaOptions, normalise
from galley.structured.tag_tokens import as_texts

#: Most formats in one structural tag, and its deepest nesting.
MAX_FORMATS = 1_000
MAX_DEPTH = 50
#: Most times that `repeat` may repeat.
MAX_REPEAT = 1_000
#: Fields of xgrammar's formats that have no effect here.
_REFUSED = ("max_tokens", "max_chars", "any_order", "max_whitespace_cnt")
#: The ends of a format: one of these texts, and not the text that the answer ends.
Ends = tuple[str, ...]


def guidance_grammar(
    tag: Any, options: SchemaOptions, special: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """The grammar of a structural tag, in llguidance's JSON form.

    Args:
        tag: as decoded from JSON; it is changed.
        special: texts in the tag that stand for special tokens → their ids.

    Raises:
        MalformedTag: a part is malformed or not supported; the message says where.
    """
    if not isinstance(tag, dict) or tag.get("type", "structural_tag") != "structural_tag":
        raise _fault("$", "must be an object of type 'structural_tag'")
    tokens = as_texts(tag)
    writer = _Writer(options, {**(special or {}), **tokens})
    newer = tag.get("format") is not None
    format_ = tag["format"] if newer else _older_form(tag)
    path = "$.format" if newer else "$"
    body = writer.expression(format_, (), path, 0)
    lines = ["%llguidance {}", f"start: {body}", *writer.rules]
    return {"grammars": [{"lark_grammar": "\n".join(lines)}, *writer.grammars]}


def _older_form(tag: dict[str, Any]) -> dict[str, Any]:
    structures, triggers = tag.get("structures"), tag.get("triggers")
    if not isinstance(structures, list) or not isinstance(triggers, list):
        raise _fault("$", "must have `format`, or `structures` and `triggers`")
    tags = []
    for i, structure in enumerate(structures):
        if not isinstance(structure, dict):
            raise _fault(f"$.structures[{i}]", "must be an object")
        content = {"type": "json_schema", "json_schema": structure.get("schema", {})}
        tags.append({**structure, "type": "tag", "content": content})
    return {"type": "triggered_tags", "triggers": triggers, "tags": tags}


class MalformedTag(ValueError):
    """Why a structural tag is refused, with the path of the part at fault."""


def _fault(path: str, reason: str) -> MalformedTag:
    shown = path if len(path) <= 200 else path[:200] + "…"
    return MalformedTag(f"{shown} {reason}")


class _FreeText(NamedTuple):
    """A terminal for free text, and a set of special tokens that it may have."""

    text: str
    tokens: str


class _Writer:
    """Writes formats as expressions of Lark; rules and grammars that they use are collected.

    An expression of a format with `ends` includes one of the ends. Without ends, free text lasts to
    the end of the answer, so that nothing may follow it.
    """

    def __init__(self, options: SchemaOptions, special: Mapping[str, int]) -> None:
        self.rules: list[str] = []
        self.grammars: list[dict[str, Any]] = []
        self._options = options
        self._count = 0
        self._special = special
        longest_first = sorted(special, key=len, reverse=True)
        self._split = (
            re.compile(f"({'|'.join(map(re.escape, longest_first))})") if special else None
        )

    def expression(self, format_: Any, ends: Ends, path: str, depth: int) -> str:
        kind = format_.get("type") if isinstance(format_, dict) else None
        write = _FORMATS.get(kind) if isinstance(kind, str) else None
        if write is None:
            raise _fault(path, f"has the format {kind!r}; supported are {', '.join(_FORMATS)}")
        for name in _REFUSED:
            if format_.get(name) is not None and format_[name] is not False:
                raise _fault(f"{path}.{name}", "is not supported")
        self._count += 1
        if depth > MAX_DEPTH or self._count > MAX_FORMATS:
            raise _fault(
                path, f"nests deeper than {MAX_DEPTH} or has more than {MAX_FORMATS} parts"
            )
        return write(self, format_, ends, path, depth + 1)

    def _rule(self, body: str, *, lazy: bool = False) -> str:
        name = f"r{len(self.rules)}"
        self.rules.append(f"{name}{'[lazy]' if lazy else ''}: {body}")
        return name

    def _literal(self, text: str) -> str:
        return _joined(*map(self._piece, self._pieces(text)))

    def _pieces(self, text: str) -> list[str]:
        """The text cut at its special tokens."""
        return [p for p in (self._split.split(text) if self._split else [text]) if p]

    def _piece(self, text: str) -> str:
        return f"<[{self._special[text]}]>" if text in self._special else json.dumps(text)

    def _ended(self, ends: Ends) -> str:
        if len(ends) <= 1:
            return self._literal(ends[0]) if ends else ""
        return "(" + " | ".join(self._literal(end) or '""' for end in ends) + ")"

    # ------------------------------------------------------------------ ending by themselves

    def const_string(self, format_: Any, ends: Ends, path: str, depth: int) -> str:
        return _joined(self._literal(_text(format_, "value", path)), self._ended(ends))

    def json_schema(self, format_: Any, ends: Ends, path: str, depth: int) -> str:
        _no_excludes(format_, path)
        style = format_.get("style", "json")
        if style != "json" and (not isinstance(style, str) or style not in STYLES):
            raise _fault(f"{path}.style", f"{style!r:.100} is not supported")
        try:
            schema = normalise(format_.get("json_schema"), self._options)
            if style == "json":
                body = self._rule(f"%json {json.dumps(schema)}")
            else:
                body = self._arguments(schema, _style(format_, path))
        except Refused as error:
            raise _fault(f"{path}.json_schema", error.message.removesuffix(".")) from None
        return _joined(body, self._ended(ends))

    def _arguments(self, schema: dict[str, Any], style: Style) -> str:
        """The members of an object, in a style other than JSON's."""
        values = LiteralRules(schema, style, f"v{len(self.rules)}", self._literal)
        body = values.arguments()
        self.rules += values.rules
        return body

    def regex(self, format_: Any, ends: Ends, path: str, depth: int) -> str:
        _no_excludes(format_, path)
        pattern = _text(format_, "pattern", path)
        try:
            text = pattern_of(whole(pattern))
        except UnsupportedPattern as error:
            raise _fault(f"{path}.pattern", str(error)) from None
        except TooManyStates:
            raise _fault(f"{path}.pattern", "is too complex") from None
        return _joined(self._rule(f"/{text}/") if text else "", self._ended(ends))

    def grammar(self, format_: Any, ends: Ends, path: str, depth: int) -> str:
        text = _text(format_, "grammar", path)
        if "::=" in text:
            try:
                text = gbnf_to_lark(text)
            except Exception as error:  # noqa: BLE001 - the converter raises plain Exception, too
                raise _fault(f"{path}.grammar", f"is not valid: {error}") from None
        name = f"g{len(self.grammars)}"
        self.grammars.append({"name": name, "lark_grammar": text})
        return _joined(f"@{name}", self._ended(ends))

    # ------------------------------------------------------------------ formats of formats

    def sequence(self, format_: Any, ends: Ends, path: str, depth: int) -> str:
        elements = _list(format_, "elements", path)
        last = len(elements) - 1
        parts = []
        for i, element in enumerate(elements):
            inner = f"{path}.elements[{i}]"
            if i < last and _is_endless(element):
                raise _fault(inner, "is free text, which only the last element may be")
            parts.append(self.expression(element, ends if i == last else (), inner, depth))
        return _joined(*parts)

    def alternatives(self, format_: Any, ends: Ends, path: str, depth: int) -> str:
        options = [
            self.expression(element, ends, f"{path}.elements[{i}]", depth)
            for i, element in enumerate(_list(format_, "elements", path))
        ]
        return self._rule(" | ".join(option or '""' for option in options))

    def repeated(self, format_: Any, ends: Ends, path: str, depth: int) -> str:
        content = format_.get("content")
        if _is_endless(content):
            raise _fault(f"{path}.content", "is free text, which cannot be repeated")
        body = self._rule(self.expression(content, (), f"{path}.content", depth))
        marks = {"optional": "?", "star": "*", "plus": "+"}
        if format_["type"] != "repeat":
            return _joined(f"{body}{marks[format_['type']]}", self._ended(ends))
        least, most = format_.get("min", 0), format_.get("max", -1)
        for name, value in (("min", least), ("max", most)):
            if not isinstance(value, int) or isinstance(value, bool) or value > MAX_REPEAT:
                raise _fault(f"{path}.{name}", f"must be an integer of at most {MAX_REPEAT}")
        upper = "" if most < 0 else str(most)
        return _joined(f"{body}{{{max(least, 0)},{upper}}}", self._ended(ends))

    def tag(self, format_: Any, ends: Ends, path: str, depth: int) -> str:
        begin = _text(format_, "begin", path)
        return _joined(
            self._literal(begin), self._rest_of_tag(format_, path, depth), self._ended(ends)
        )

    def _rest_of_tag(self, format_: Any, path: str, depth: int) -> str:
        end = format_.get("end")
        tag_ends = (end,) if isinstance(end, str) else tuple(end) if isinstance(end, list) else ()
        if not tag_ends or not all(isinstance(text, str) for text in tag_ends):
            raise _fault(f"{path}.end", "must be a text or a list of texts")
        if "" in tag_ends and _is_endless(format_.get("content")):
            raise _fault(f"{path}.end", "must not be empty after free text")
        return self.expression(format_.get("content"), tag_ends, f"{path}.content", depth)

    def tags_with_separator(self, format_: Any, ends: Ends, path: str, depth: int) -> str:
        tags = self._tags(format_, path)
        separator = self._literal(_text(format_, "separator", path))
        one = self._rule(
            " | ".join(
                self.expression(tag, (), f"{path}.tags[{i}]", depth) for i, tag in enumerate(tags)
            )
        )
        some = one
        if not format_.get("stop_after_first", False):
            some = f"{one} ({_joined(separator, one)})*"
        if not format_.get("at_least_one", False):
            some = f"({some})?"
        return _joined(some, self._ended(ends))

    def _tags(self, format_: Any, path: str) -> list[Any]:
        tags = _list(format_, "tags", path)
        for i, tag in enumerate(tags):
            if not isinstance(tag, dict) or tag.get("type", "tag") != "tag":
                raise _fault(f"{path}.tags[{i}]", "must be a tag")
        return [{"type": "tag", **tag} for tag in tags]

    # ------------------------------------------------------------------ free text

    def any_text(self, format_: Any, ends: Ends, path: str, depth: int) -> str:
        return self._until(self._free(format_, ends, path), ends)

    def _free(self, format_: dict[str, Any], ends: Ends, path: str) -> _FreeText:
        """Free text that neither has nor spells the special tokens of `ends`."""
        stops = [piece for end in ends for piece in self._pieces(end)[:1]]
        stops = [piece for piece in stops if piece in self._special]
        allowed = format_.get("tokens") or []
        if not isinstance(allowed, list):
            raise _fault(f"{path}.tokens", "must be a list of texts")
        ids = sorted(self._special[t] for t in allowed if t in self._special and t not in stops)
        text = _free_text(format_, path, stops)
        return _FreeText(text, f"<[{','.join(map(str, ids))}]>" if ids else "")

    def _until(self, free: _FreeText, ends: Ends) -> str:
        """Free text up to the first of the ends, and that end."""
        before = ""
        if free.tokens:
            before = self._rule(f"({self._rule(free.text)} {free.tokens})*")
        if not ends:
            return _joined(before, self._rule(free.text))
        texts = [end for end in ends if self._pieces(end) == [end] and end not in self._special]
        marked = [end for end in ends if end not in texts]
        options = []
        if texts:
            last = " | ".join(map(self._literal, texts))
            options.append(self._rule(f"{free.text} ({last})", lazy=True))
        for end in marked:
            first, *rest = self._pieces(end)
            if first in self._special:
                options.append(_joined(self._rule(free.text), self._literal(end)))
            else:
                lead = self._rule(f"{free.text} {json.dumps(first)}", lazy=True)
                options.append(_joined(lead, *map(self._piece, rest)))
        return _joined(before, f"({' | '.join(options)})")

    def triggered_tags(self, format_: Any, ends: Ends, path: str, depth: int) -> str:
        tags = self._tags(format_, path)
        triggers = _list(format_, "triggers", path)
        if not all(isinstance(trigger, str) and trigger for trigger in triggers):
            raise _fault(f"{path}.triggers", "must be texts that are not empty")
        free = self._free(format_, (*triggers, *ends), path)
        rests: dict[str, list[str]] = {trigger: [] for trigger in triggers}
        lasts: dict[str, list[str]] = {trigger: [] for trigger in triggers}
        whole_tags = []
        for i, tag in enumerate(tags):
            inner = f"{path}.tags[{i}]"
            begin = _text(tag, "begin", inner)
            matching = [trigger for trigger in triggers if begin.startswith(trigger)]
            if len(matching) != 1:
                raise _fault(f"{inner}.begin", "must start with exactly one of the triggers")
            rest = self._rule(self._rest_of_tag(tag, inner, depth) or '""')
            after = _joined(self._literal(begin.removeprefix(matching[0])), rest)
            (lasts if tag.get("last") else rests)[matching[0]].append(after)
            whole_tags.append(_joined(self._literal(begin), rest))
        tag_now = self._rule(" | ".join(whole_tags))
        tag_later = self._later(free, rests)
        after = self._until(free, ends)
        once, first = format_.get("stop_after_first", False), format_.get("at_least_one", False)
        if once:
            # Text without a tag may stand here, too, unless a tag must.
            body = _joined(tag_now, self._ended(ends))
            if first:
                return body
            return self._rule(f"{_joined(tag_later, self._ended(ends))} | {after}")
        if any(lasts.values()):
            after = self._rule(f"{_joined(self._later(free, lasts), self._ended(ends))} | {after}")
        return _joined(tag_now if first else "", f"{tag_later}*", after)

    def _later(self, free: _FreeText, rests: dict[str, list[str]]) -> str:
        """Free text and a tag, by the triggers of tags."""
        return self._rule(
            " | ".join(
                _joined(self._until(free, (trigger,)), f"({' | '.join(options)})")
                for trigger, options in rests.items()
                if options
            )
            or '""'
        )


_FORMATS: dict[str, Callable[[_Writer, Any, Ends, str, int], str]] = {
    "const_string": _Writer.const_string,
    "json_schema": _Writer.json_schema,
    "regex": _Writer.regex,
    "grammar": _Writer.grammar,
    "sequence": _Writer.sequence,
    "or": _Writer.alternatives,
    "optional": _Writer.repeated,
    "star": _Writer.repeated,
    "plus": _Writer.repeated,
    "repeat": _Writer.repeated,
    "tag": _Writer.tag,
    "tags_with_separator": _Writer.tags_with_separator,
    "any_text": _Writer.any_text,
    "triggered_tags": _Writer.triggered_tags,
}


def _style(format_: dict[str, Any], path: str) -> Style:
    style, quote = STYLES[format_["style"]], format_.get("quote")
    if quote is None or not style.quote:
        return style
    if not isinstance(quote, str) or not quote:
        raise _fault(f"{path}.quote", "must be a text that is not empty")
    return replace(style, quote=quote)


def _is_endless(format_: Any) -> bool:
    """Whether only what follows ends it."""
    if not isinstance(format_, dict):
        return False
    kind, elements = format_.get("type"), format_.get("elements")
    if kind in ("any_text", "triggered_tags"):
        return True
    if kind in ("sequence", "or") and isinstance(elements, list) and elements:
        return any(map(_is_endless, elements if kind == "or" else elements[-1:]))
    return False


def _joined(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _text(format_: dict[str, Any], name: str, path: str) -> str:
    value = format_.get(name)
    if not isinstance(value, str):
        raise _fault(f"{path}.{name}", "must be a text")
    return value


def _list(format_: dict[str, Any], name: str, path: str) -> list[Any]:
    value = format_.get(name)
    if not isinstance(value, list) or not value:
        raise _fault(f"{path}.{name}", "must be a list that is not empty")
    return value


def _no_excludes(format_: dict[str, Any], path: str) -> None:
    if format_.get("excludes"):
        raise _fault(f"{path}.excludes", "is only supported for free text")


def _free_text(format_: dict[str, Any], path: str, stops: Sequence[str]) -> str:
    """A terminal for any text in which none of `excludes`, `excludes_patterns` and `stops` is, and
    that does not begin with one of `excludes_at_start`.
    """
    excludes = format_.get("excludes") or []
    if not isinstance(excludes, list) or not all(isinstance(e, str) and e for e in excludes):
        raise _fault(f"{path}.excludes", "must be a list of texts that are not empty")
    parts: list[Tree] = [
        Concat(tuple(Chars(((ord(c),) * 2,)) for c in text)) for text in (*excludes, *stops)
    ]
    parts += [parse(pattern) for pattern in format_.get("excludes_patterns") or []]
    first = [parse(pattern) for pattern in format_.get("excludes_at_start") or []]
    if not parts and not first:
        return "/(?s:.*)/"
    refused = Either((*(Concat((ANYTHING, part)) for part in parts), *first))
    try:
        found = Automaton.of(Concat((refused, ANYTHING)))
        rest = found.complement().tree()
    except TooManyStates:
        raise _fault(f"{path}.excludes", "is too complex") from None
    return f"/{render(rest)}/"
