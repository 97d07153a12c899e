"""Masks by xgrammar: pushdown automata whose masks are mostly computed when a grammar is compiled.

It imports torch and transformers, so it is an extra and is used only where the configuration names
it. Keywords of JSON schemas that it ignores or does not enforce exactly are refused here:
`multipleOf`, and lengths, with which a string may contain control characters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xgrammar

from galley.config.cores import usable_cores
from galley.errors import InvalidRequest
from galley.request import Constraint
from galley.structured.backend import MaskRows
from galley.structured.vocabulary import Vocabulary

#: Keywords of normalised schemas that it enforces, besides those whose values are schemas.
_ENFORCED = {
    *("type", "enum", "const", "required", "minItems", "maxItems", "minimum", "maximum"),
    *("exclusiveMinimum", "exclusiveMaximum", "minProperties", "maxProperties"),
    *("$ref", "x-guidance"),
}
_ONE_SCHEMA = ("items", "additionalProperties", "propertyNames", "unevaluatedItems")
_SCHEMAS = ("anyOf", "prefixItems")
_NAMED_SCHEMAS = ("properties", "patternProperties", "$defs")


class XGrammarMatcher:
    """See `backend.Matcher`. No token is ever reported as certain: a mask keeps all spellings."""

    __slots__ = ("native",)

    def __init__(self, native: Any) -> None:
        self.native = native

    def advance(self, token_ids: Sequence[int]) -> bool:
        return all(self.native.accept_token(token_id) for token_id in token_ids)

    def accepted(self, token_ids: Sequence[int]) -> int:
        count = 0
        for token_id in token_ids:
            if self.native.is_terminated() or not self.native.accept_token(token_id):
                break
            count += 1
        self.rollback(count)
        return count

    def rollback(self, num_tokens: int) -> None:
        if num_tokens:
            self.native.rollback(num_tokens)

    def forced_tokens(self) -> list[int]:
        return []

    @property
    def finished(self) -> bool:
        return bool(self.native.is_terminated())

    @property
    def error(self) -> str | None:
        return None


class XGrammarGrammar:
    """See `backend.Grammar`."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled

    def matcher(self) -> XGrammarMatcher:
        return XGrammarMatcher(xgrammar.GrammarMatcher(self._compiled))


class XGrammar:
    """See `backend.Backend`."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        special = vocabulary.special_ids
        tokens = [b"" if i in special else token for i, token in enumerate(vocabulary.tokens)]
        info = xgrammar.TokenizerInfo(
            tokens,
            vocab_size=-(-vocabulary.size // 64) * 64,  # whole words of a mask
            stop_token_ids=list(vocabulary.end_ids),
        )
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=usable_cores())

    def compile(self, constraint: Constraint) -> XGrammarGrammar:
        try:
            return XGrammarGrammar(self._compiler.compile_grammar(_grammar(constraint)))
        except RuntimeError as error:
            raise _refusal(constraint, str(error)) from None

    def fill(
        self, matchers: Sequence[XGrammarMatcher], rows: Sequence[int], masks: MaskRows
    ) -> None:
        bits = masks.view(np.int32)
        for matcher, row in zip(matchers, rows, strict=True):
            matcher.native.fill_next_token_bitmask(bits, row)


def open_backend(vocabulary: Vocabulary) -> XGrammar:
    return XGrammar(vocabulary)


def validate(constraint: Constraint) -> None:
    """Raise InvalidRequest for a constraint that cannot be compiled, or not be enforced."""
    try:
        _grammar(constraint)
    except RuntimeError as error:
        raise _refusal(constraint, str(error)) from None


def _grammar(constraint: Constraint) -> Any:
    """Raises InvalidRequest, RuntimeError."""
    kind, text, grammar = constraint.kind, constraint.text, xgrammar.Grammar
    if kind == "json":
        try:
            schema = _adapted(json.loads(text))
        except _NotEnforcedError as error:
            message = f"the xgrammar backend does not enforce {error}"
            raise _refusal(constraint, message) from None
        if constraint.whitespace_pattern is not None:
            raise _refusal(constraint, "the xgrammar backend has no whitespace_pattern")
        return grammar.from_json_schema(
            json.dumps(schema), any_whitespace=constraint.any_whitespace, strict_mode=False
        )
    if kind == "choice":
        choices = " | ".join(json.dumps(choice) for choice in json.loads(text))
        return grammar.from_ebnf(f"root ::= {choices}")
    if kind == "regex":
        return grammar.from_regex(_pattern(text))
    make: dict[str, Callable[[str], Any]] = {
        "ebnf": grammar.from_ebnf,
        "lark": grammar.from_lark,
        "structural_tag": grammar.from_structural_tag,
    }
    return make[kind](text)


class _NotEnforcedError(Exception):
    """A keyword that would be ignored."""


def _adapted(schema: Any) -> Any:
    """A normalised schema with its patterns in xgrammar's syntax. Raises _NotEnforcedError."""
    if not isinstance(schema, dict):
        return schema
    adapted: dict[str, Any] = {}
    for keyword, value in schema.items():
        if keyword in _ONE_SCHEMA:
            value = _adapted(value)
        elif keyword in _SCHEMAS:
            value = [_adapted(part) for part in value]
        elif keyword in _NAMED_SCHEMAS:
            adapt = _pattern if keyword == "patternProperties" else str
            value = {adapt(name): _adapted(part) for name, part in value.items()}
        elif keyword == "pattern":
            value = _pattern(value)
        elif keyword not in _ENFORCED:
            raise _NotEnforcedError(keyword)
        adapted[keyword] = value
    adapted.pop("x-guidance", None)
    return adapted


def _pattern(text: str) -> str:
    """A normalised pattern in xgrammar's syntax."""
    text = text.replace("(?s:.)", r"[\u{0}-\u{10FFFF}]")
    return re.sub(r"\\x\{|\\.", lambda m: r"\u{" if m[0] == r"\x{" else m[0], text)


def _refusal(constraint: Constraint, message: str) -> InvalidRequest:
    sentence = " ".join(message.split())[:300].rstrip(".")
    return InvalidRequest(
        f"{constraint.field} cannot be compiled: {sentence}.", field=constraint.field
    )
